//! A literal model of 48882's DMA rules: one byte at a time, slow, with nothing but the numbers of
//! the specification. It shares no code and no types with the engine.

/// Registers, DTE words and request, as numbers.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    pub iommu_en: bool,
    pub levels: u64,
    pub va_size: u64,
    pub eph_sup: bool,
    pub ht_range_ignore: bool,
    /// First, last, Allow.
    pub exclusion: Option<(u64, u64, bool)>,
    pub q0: u64,
    pub q1: u64,
    pub device: u64,
    pub iova: u64,
    pub read: bool,
    pub write: bool,
    /// PCIe AT: 0 untranslated, 1 translation request, 2 translated.
    pub at: u64,
}

/// What happens to one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is at `gpa`; `page` is the size of the page in bytes, if a page table was used.
    At {
        gpa: u128,
        readable: bool,
        writable: bool,
        page: Option<u128>,
    },
    /// Aborted, with this record in the event log, which SE makes the only one.
    Aborted {
        event: Option<u128>,
        only_first: bool,
    },
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    ((word as u128 >> low) % (1u128 << (high - low + 1))) as u64
}

fn bit(word: u64, n: u32) -> bool {
    bits(word, n, n) == 1
}

const SILENT: Output = Output::Aborted {
    event: None,
    only_first: false,
};

impl Input {
    fn record(&self, code: u128, fields: u128, address: u128) -> Output {
        let event = code << 60 | fields | self.device as u128 | address << 64;
        Output::Aborted {
            event: Some(event),
            only_first: false,
        }
    }

    fn page_fault(&self, present: u128, permission: u128, reserved: u128) -> Output {
        if self.at == 1 || dte_bit_of_q1(self.q1, 98) {
            return SILENT;
        }
        let fields = (bits(self.q1, 15, 0) as u128) << 32
            | present << 52
            | (self.write as u128) << 53
            | permission << 54
            | reserved << 55;
        match self.record(2, fields, self.iova as u128) {
            Output::Aborted { event, .. } => Output::Aborted {
                event,
                only_first: dte_bit_of_q1(self.q1, 97),
            },
            other => other,
        }
    }

    fn illegal_dte(&self, reserved: u128) -> Output {
        let fields = (self.write as u128) << 53 | reserved << 55 | ((self.at == 1) as u128) << 56;
        self.record(1, fields, (self.iova & !3) as u128)
    }

    fn invalid_request(&self, kind: u128) -> Output {
        self.record(8, kind << 57, self.iova as u128)
    }

    fn invalid_translation_request(&self, kind: u128) -> Output {
        self.record(8, 1 << 56 | kind << 57, self.iova as u128)
    }

    fn passes(&self) -> Output {
        self.identity(true, true)
    }

    fn identity(&self, readable: bool, writable: bool) -> Output {
        Output::At {
            gpa: self.iova as u128,
            readable,
            writable,
            page: None,
        }
    }

    fn denied(&self, readable: bool, writable: bool) -> bool {
        self.at == 0 && (self.read && !readable || self.write && !writable)
    }
}

/// A bit of DTE[127:64] by its number in the DTE.
fn dte_bit_of_q1(q1: u64, n: u32) -> bool {
    bit(q1, n - 64)
}

/// What the specification says about one byte. `load` reads a 64-bit word, or fails.
pub fn byte(input: &Input, load: &mut dyn FnMut(u64) -> Option<u64>) -> Output {
    let in_window = (0xfee0_0000..=0xfeef_ffff).contains(&input.iova);
    if !input.iommu_en {
        return if in_window || input.at == 1 {
            SILENT
        } else {
            input.passes()
        };
    }
    if in_window {
        return match (input.at, input.read) {
            (1, _) => input.invalid_translation_request(0),
            (_, true) => input.invalid_request(0),
            // A posted write is an interrupt request.
            (_, false) => SILENT,
        };
    }
    if !bit(input.q0, 0) {
        return match input.at {
            0 => input.passes(),
            1 => input.invalid_translation_request(1),
            _ => input.invalid_request(1),
        };
    }

    // Reserved bits of DTE[127:0], by their numbers there.
    let mut reserved: Vec<u32> = vec![2, 3, 4, 5, 6, 7, 8, 63, 106];
    reserved.extend(54..=60);
    reserved.extend(80..=95);
    reserved.extend(107..=127);
    if !input.eph_sup {
        reserved.extend([52, 53]);
    }
    if input.levels == 0 {
        reserved.extend(12..=51);
    }
    let dte = input.q0 as u128 | (input.q1 as u128) << 64;
    if reserved.iter().any(|n| dte >> n & 1 == 1) {
        return input.illegal_dte(1);
    }
    let mode = bits(input.q0, 11, 9);
    let tv = bit(input.q0, 1);
    if tv && mode > input.levels {
        return input.illegal_dte(0);
    }

    let ats_allowed = dte_bit_of_q1(input.q1, 96);
    if input.at == 1 && !ats_allowed {
        return input.invalid_translation_request(1);
    }
    if input.at == 2 {
        return if ats_allowed {
            input.passes()
        } else {
            input.invalid_request(1)
        };
    }

    let mut ordinary = true;
    if !input.ht_range_ignore && (0xfd_0000_0000..=0xff_ffff_ffff).contains(&input.iova) {
        let refuse = |kind| {
            if input.at == 1 {
                input.invalid_translation_request(0)
            } else {
                input.invalid_request(kind)
            }
        };
        let posted = input.write && !input.read;
        ordinary = false;
        match input.iova {
            0xfd_0000_0000..=0xfd_f7ff_ffff => return refuse(5),
            0xfd_f800_0000..=0xfd_f8ff_ffff => return refuse(if posted { 4 } else { 0 }),
            0xfd_f910_0000..=0xfd_f91f_ffff => match bits(input.q1, 105 - 64, 104 - 64) {
                1 if posted => return input.passes(),
                0 | 2 if posted => return refuse(3),
                3 => {}
                _ => return refuse(6),
            },
            0xfd_fc00_0000..=0xfd_fdff_ffff => match bits(input.q1, 100 - 64, 99 - 64) {
                0 => return refuse(2),
                1 => return input.passes(),
                2 => {}
                _ => return input.illegal_dte(0),
            },
            _ => return input.page_fault(0, 0, 0),
        }
    }
    if let Some((first, last, allow)) = input.exclusion
        && ordinary
        && (allow || dte_bit_of_q1(input.q1, 103))
        && (first..=last).contains(&input.iova)
    {
        return input.passes();
    }

    if !tv {
        return input.page_fault(0, 0, 0);
    }
    let (readable, writable) = (bit(input.q0, 61), bit(input.q0, 62));
    if input.denied(readable, writable) {
        return input.page_fault(1, 1, 0);
    }
    if mode == 0 {
        return input.identity(readable, writable);
    }
    let width = [0, 21, 30, 39, 48, 57, 64][mode as usize];
    let width = if input.va_size == 0 {
        width
    } else {
        width.min(input.va_size)
    };
    if input.iova as u128 >= 1u128 << width {
        return input.page_fault(0, 0, 0);
    }
    let root = bits(input.q0, 51, 12) * 4096;
    level(input, load, root, mode, readable, writable)
}

/// One level of the walk: table at `table`, permissions so far.
fn level(
    input: &Input,
    load: &mut dyn FnMut(u64) -> Option<u64>,
    table: u64,
    current: u64,
    readable: bool,
    writable: bool,
) -> Output {
    // What an entry of each level maps by default; the seventh does not exist.
    const LOG2: [u64; 8] = [0, 12, 21, 30, 39, 48, 57, 66];
    let index = |level: u64| {
        (input.iova as u128 / (1u128 << LOG2[level as usize]) % if level == 6 { 128 } else { 512 })
            as u64
    };
    let address = table + index(current) * 8;
    let Some(entry) = load(address) else {
        let fields = (bits(input.q1, 15, 0) as u128) << 32
            | (input.write as u128) << 53
            | ((input.at == 1) as u128) << 56
            | 1 << 57;
        return input.record(4, fields, address as u128);
    };
    if !bit(entry, 0) {
        return input.page_fault(0, 0, 0);
    }
    let next = bits(entry, 11, 9);
    let is_pde = (1..=6).contains(&next);
    if bits(entry, 58, 52) != 0 || is_pde && bits(entry, 60, 52) != 0 {
        return input.page_fault(1, 0, 1);
    }
    let mut log2 = LOG2[current as usize];
    if next == 7 {
        // One more than the first zero bit from 12 on; none in 51:12 is no size.
        let Some(zero) = (12..52).find(|n| !bit(entry, *n)) else {
            return input.page_fault(1, 0, 0);
        };
        log2 = zero as u64 + 1;
        if log2 <= LOG2[current as usize] || log2 >= LOG2[current as usize + 1] {
            return input.page_fault(1, 0, 0);
        }
    }
    if is_pde {
        if next >= current {
            return input.page_fault(1, 0, 0);
        }
        for skipped in next + 1..current {
            if index(skipped) != 0 {
                return input.page_fault(1, 0, 0);
            }
        }
    }
    let readable = readable && bit(entry, 61);
    let writable = writable && bit(entry, 62);
    if input.denied(readable, writable) {
        return input.page_fault(1, 1, 0);
    }
    if is_pde {
        return level(
            input,
            load,
            bits(entry, 51, 12) * 4096,
            next,
            readable,
            writable,
        );
    }
    let size = 1u128 << log2;
    let page = (bits(entry, 51, 12) * 4096) as u128 / size * size;
    Output::At {
        gpa: page + input.iova as u128 % size,
        readable,
        writable,
        page: Some(size),
    }
}
