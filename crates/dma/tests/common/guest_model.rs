//! A literal model of guest (v2) page tables, nesting, and accessed and dirty bits: one byte at a time,
//! slow, with nothing but the numbers of the specification. It shares no code and no types with the
//! engine, nor with the model of what concerns every request.
//!
//! It begins where an entry with V=1 and an ordinary address are: special ranges belong to the other
//! model.

/// Registers, DTE words and request, as numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input {
    pub host_levels: u64,
    pub gt_sup: bool,
    pub gt_en: bool,
    pub gio_sup: bool,
    pub guest_levels: u64,
    pub gcr3_levels: u64,
    pub max_pasid: u64,
    pub gcr3_trp_mode: bool,
    pub nx_sup: bool,
    pub ga_update: bool,
    pub gd_update: bool,
    pub ha_sup: bool,
    pub hd_sup: bool,
    pub q0: u64,
    pub q1: u64,
    pub guest_paging_mode: u64,
    pub device: u64,
    pub iova: u64,
    pub read: bool,
    pub write: bool,
    pub pasid: Option<u64>,
    pub execute: bool,
    pub privileged: bool,
    /// PCIe AT: 0 untranslated, 1 translation request.
    pub at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is at `gpa`; `page` is the size of what maps it, 0 for identity; `guest_page` that of the
    /// guest's page, 0 without one.
    At {
        gpa: u64,
        readable: bool,
        writable: bool,
        executable: bool,
        page: u128,
        guest_page: u128,
    },
    /// Aborted, with this record in the event log.
    Aborted(Option<u128>),
}

/// Guest memory.
pub trait Words {
    fn load(&mut self, address: u64) -> Option<u64>;
    fn store(&mut self, address: u64, word: u64);
}

impl Words for std::collections::BTreeMap<u64, u64> {
    fn load(&mut self, address: u64) -> Option<u64> {
        (address < super::UNBACKED).then(|| self.get(&address).copied().unwrap_or(0))
    }
    fn store(&mut self, address: u64, word: u64) {
        self.insert(address, word);
    }
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    ((word as u128 >> low) % (1u128 << (high - low + 1))) as u64
}

fn bit(word: u64, n: u32) -> bool {
    bits(word, n, n) == 1
}

/// Whose fault it is.
#[derive(Clone, Copy)]
enum At {
    /// Before any table, or by the host's table of a request that is not in a process.
    Request,
    /// By the GCR3 table or the guest's table.
    Guest(u64),
    /// By the host's table, for this guest physical address; a write?
    Host(u64, bool),
}

/// Why.
#[derive(Clone, Copy)]
enum Why {
    NotThere,
    Reserved,
    Level,
    Denied,
    /// Nothing answers at this address.
    Hardware(u64),
}

type Found<T> = Result<T, (At, Why)>;

/// A page of the host's table, or of the guest's.
#[derive(Clone, Copy)]
struct Page {
    first: u64,
    size: u128,
    readable: bool,
    writable: bool,
    executable: bool,
}

const LOG2: [u64; 8] = [0, 12, 21, 30, 39, 48, 57, 66];

/// What the specification says about one byte.
pub fn byte(input: &Input, memory: &mut dyn Words) -> Output {
    if let Some(reserved) = illegal_dte(input) {
        let pasid = input.pasid.unwrap_or(0) as u128;
        let event = 1 << 60
            | input.device as u128
            | (pasid >> 16) << 16
            | (pasid & 0xffff) << 32
            | (input.pasid.is_some() as u128) << 48
            | (input.write as u128) << 53
            | reserved << 55
            | ((input.at == 1) as u128) << 56
            | ((input.iova & !3) as u128) << 64;
        return Output::Aborted(Some(event));
    }
    match translate(input, memory) {
        Ok(output) => output,
        Err((at, why)) => Output::Aborted(event(input, at, why)),
    }
}

fn illegal_dte(input: &Input) -> Option<u128> {
    let mut reserved: Vec<u32> = vec![2, 3, 4, 5, 6, 52, 53, 63, 106];
    if input.host_levels == 0 {
        reserved.extend(12..=51);
    }
    if !input.ha_sup {
        reserved.push(7);
    }
    if !(input.ha_sup && input.hd_sup) {
        reserved.push(8);
    }
    if !(input.gt_sup && input.gio_sup) {
        reserved.push(54);
    }
    if !input.gt_sup {
        reserved.extend(55..=60);
        reserved.extend(80..=95);
        reserved.extend(107..=127);
    }
    let dte = input.q0 as u128 | (input.q1 as u128) << 64;
    if reserved.iter().any(|n| dte >> n & 1 == 1) {
        return Some(1);
    }
    if !bit(input.q0, 1) {
        return None;
    }
    let encodings = bits(input.q0, 8, 7) == 2
        || bits(input.q0, 11, 9) > input.host_levels
        || guest_is_on(input)
            && (bits(input.q0, 57, 56) + 1 > input.gcr3_levels
                || input.guest_paging_mode + 4 > input.guest_levels);
    encodings.then_some(0)
}

fn guest_is_on(input: &Input) -> bool {
    input.gt_sup && input.gt_en && bit(input.q0, 55)
}

fn event(input: &Input, at: At, why: Why) -> Option<u128> {
    let (guest, address, write) = match at {
        At::Request => (input.pasid, input.iova, input.write),
        At::Guest(pasid) => (Some(pasid), input.iova, input.write),
        At::Host(gpa, write) => (None, gpa, write),
    };
    let whose = match guest {
        Some(pasid) => pasid as u128 & 0xffff,
        None => bits(input.q1, 15, 0) as u128,
    };
    let common = input.device as u128
        | whose << 32
        | (guest.is_some() as u128) << 48
        | (write as u128) << 53;
    let (present, permission, reserved) = match why {
        Why::Hardware(at) => {
            // Type 1: master abort.
            let tr = ((input.at == 1) as u128) << 56;
            return Some(4 << 60 | common | tr | 1 << 57 | (at as u128) << 64);
        }
        Why::NotThere => (0, 0, 0),
        Why::Reserved => (1, 0, 1),
        Why::Level => (1, 0, 0),
        Why::Denied => (1, 1, 0),
    };
    // SA; and a translation request is answered, not logged.
    if bit(input.q1, 98 - 64) || input.at == 1 {
        return None;
    }
    let in_process = match guest {
        Some(pasid) => {
            let fetches = input.execute && input.pasid.is_some() && input.read && !input.write;
            (pasid as u128 >> 16) << 16
                | (fetches as u128) << 49
                | (!(input.privileged && input.pasid.is_some()) as u128) << 50
        }
        None => 0,
    };
    Some(
        2 << 60
            | common
            | in_process
            | present << 52
            | permission << 54
            | reserved << 55
            | (address as u128) << 64,
    )
}

fn translate(input: &Input, memory: &mut dyn Words) -> Found<Output> {
    let request = |why| (At::Request, why);
    if !bit(input.q0, 1) {
        return Err(request(Why::NotThere));
    }
    let on = guest_is_on(input);
    if input.pasid.is_some() && !on {
        return Err(request(Why::NotThere));
    }
    let pasid = if on && bit(input.q0, 54) {
        Some(input.pasid.unwrap_or(0))
    } else {
        input.pasid
    };
    let (readable, writable) = (bit(input.q0, 61), bit(input.q0, 62));
    if input.at == 0 && (input.read && !readable || input.write && !writable) {
        return Err(request(Why::Denied));
    }
    // A page gets dirty if the request writes, or would like to, and all let it.
    let dirties = input.write && writable;
    let mode = bits(input.q0, 11, 9);
    let Some(pasid) = pasid else {
        if mode == 0 {
            return Ok(Output::At {
                gpa: input.iova,
                readable,
                writable,
                executable: false,
                page: 0,
                guest_page: 0,
            });
        }
        let needs = (input.at == 0 && input.read, input.at == 0 && input.write);
        let page =
            host(input, memory, input.iova, needs, dirties).map_err(|why| (At::Request, why))?;
        return Ok(Output::At {
            gpa: page.first + (input.iova as u128 % page.size) as u64,
            readable: readable && page.readable,
            writable: writable && page.writable,
            executable: false,
            page: page.size,
            guest_page: 0,
        });
    };

    let guest = |why| (At::Guest(pasid), why);
    let gcr3_levels = bits(input.q0, 57, 56) + 1;
    let entries = [512, 512 * 512, 4 * 512 * 512][gcr3_levels as usize - 1];
    if pasid > input.max_pasid || pasid >= entries {
        return Err(guest(Why::NotThere));
    }
    let levels = input.guest_paging_mode + 4;
    let width = 12 + 9 * levels as u32;
    let upper = input.iova as u128 >> (width - 1);
    let ones = (1u128 << (65 - width)) - 1;
    let zero_extended = pasid == 0 && upper <= 1;
    if upper != 0 && upper != ones && !zero_extended {
        return Err(guest(Why::NotThere));
    }

    // From the PASID to the table.
    let gcr3 = bits(input.q0, 60, 58) << 12
        | bits(input.q1, 95 - 64, 80 - 64) << 15
        | bits(input.q1, 127 - 64, 107 - 64) << 31;
    let mut table = gcr3;
    for level in (1..=gcr3_levels).rev() {
        let index = match level {
            1 => pasid % 512,
            2 => pasid / 512 % 512,
            _ => pasid / 512 / 512,
        };
        let address = table + index * 8;
        let spa = if level == gcr3_levels && !input.gcr3_trp_mode {
            address
        } else {
            table_address(input, memory, address, false)?
        };
        let entry = memory.load(spa).ok_or(guest(Why::Hardware(spa)))?;
        if !bit(entry, 0) {
            return Err(guest(Why::NotThere));
        }
        if bits(entry, 11, 1) != 0 || bits(entry, 63, 52) != 0 {
            return Err(guest(Why::Reserved));
        }
        table = bits(entry, 51, 12) * 4096;
    }

    let page = guest_walk(input, memory, pasid, table, levels, dirties)?;
    let gpa = page.first + (input.iova as u128 % page.size) as u64;
    let (spa, below) = if mode == 0 {
        (gpa, page)
    } else {
        let needs = (input.at == 0 && input.read, input.at == 0 && input.write);
        let below = host_of(input, memory, gpa, needs, dirties, input.write)?;
        (below.first + (gpa as u128 % below.size) as u64, below)
    };
    Ok(Output::At {
        gpa: spa,
        readable: readable && page.readable && below.readable,
        writable: writable && page.writable && below.writable,
        executable: page.executable,
        page: page.size.min(below.size),
        guest_page: page.size,
    })
}

fn guest_walk(
    input: &Input,
    memory: &mut dyn Words,
    pasid: u64,
    root: u64,
    levels: u64,
    dirties: bool,
) -> Found<Page> {
    let guest = |why| (At::Guest(pasid), why);
    let user = !(input.privileged && input.pasid.is_some());
    let fetches = input.at == 0
        && input.nx_sup
        && input.execute
        && input.pasid.is_some()
        && input.read
        && !input.write;
    let (mut writable, mut for_users, mut executable) = (true, true, input.nx_sup);
    let mut table = root;
    let mut level = levels;
    loop {
        let index = (input.iova as u128 >> LOG2[level as usize]) % 512;
        let address = table + index as u64 * 8;
        let spa = table_address(input, memory, address, false)?;
        let entry = memory.load(spa).ok_or(guest(Why::Hardware(spa)))?;
        if !bit(entry, 0) {
            return Err(guest(Why::NotThere));
        }
        let large = bit(entry, 7);
        let bad = match level {
            1 => false,
            2 => large && bits(entry, 20, 13) != 0,
            3 => large && bits(entry, 29, 13) != 0,
            _ => large,
        };
        if bad {
            return Err(guest(Why::Reserved));
        }
        writable = writable && bit(entry, 1);
        for_users = for_users && bit(entry, 2);
        executable = executable && !bit(entry, 63);
        if user && !for_users || fetches && !executable || input.at == 0 && input.write && !writable
        {
            return Err(guest(Why::Denied));
        }
        let leaf = level == 1 || large;
        let mut marked = entry;
        if input.ga_update {
            marked |= 1 << 5;
        }
        if input.gd_update && leaf && dirties && writable {
            marked |= 1 << 6;
        }
        if marked != entry {
            let spa = table_address(input, memory, address, true)?;
            memory.store(spa, marked);
        }
        if leaf {
            let size = 1u128 << LOG2[level as usize];
            return Ok(Page {
                first: (bits(entry, 51, 12) * 4096) & !(size as u64 - 1),
                size,
                readable: true,
                // As long as it is clean, somebody has to be told.
                writable: writable && (bit(marked, 6) || !input.gd_update),
                executable,
            });
        }
        table = bits(entry, 51, 12) * 4096;
        level -= 1;
    }
}

/// Where the IOMMU finds an entry of the guest's tables.
fn table_address(input: &Input, memory: &mut dyn Words, gpa: u64, write: bool) -> Found<u64> {
    if bits(input.q0, 11, 9) == 0 {
        return Ok(gpa);
    }
    let page = host_of(input, memory, gpa, (true, write), write, write)?;
    Ok(page.first + (gpa as u128 % page.size) as u64)
}

fn host_of(
    input: &Input,
    memory: &mut dyn Words,
    gpa: u64,
    needs: (bool, bool),
    dirties: bool,
    write: bool,
) -> Found<Page> {
    host(input, memory, gpa, needs, dirties).map_err(|why| (At::Host(gpa, write), why))
}

/// The host's table, for one address.
fn host(
    input: &Input,
    memory: &mut dyn Words,
    address: u64,
    needs: (bool, bool),
    dirties: bool,
) -> Result<Page, Why> {
    let mode = bits(input.q0, 11, 9);
    if mode < 6 && address as u128 >= 1u128 << LOG2[mode as usize + 1] {
        return Err(Why::NotThere);
    }
    let had = bits(input.q0, 8, 7);
    let index = |level: u64| {
        (address as u128 / (1u128 << LOG2[level as usize]) % if level == 6 { 128 } else { 512 })
            as u64
    };
    let mut table = bits(input.q0, 51, 12) * 4096;
    let mut level = mode;
    let (mut readable, mut writable) = (true, true);
    loop {
        let at = table + index(level) * 8;
        let entry = memory.load(at).ok_or(Why::Hardware(at))?;
        if !bit(entry, 0) {
            return Err(Why::NotThere);
        }
        let next = bits(entry, 11, 9);
        let is_pde = (1..=6).contains(&next);
        if bits(entry, 58, 52) != 0 || is_pde && bits(entry, 60, 52) != 0 {
            return Err(Why::Reserved);
        }
        let mut log2 = LOG2[level as usize];
        if next == 7 {
            let zero = (12..52).find(|n| !bit(entry, *n)).ok_or(Why::Level)?;
            log2 = zero as u64 + 1;
            if log2 <= LOG2[level as usize] || log2 >= LOG2[level as usize + 1] {
                return Err(Why::Level);
            }
        }
        if is_pde && (next >= level || (next + 1..level).any(|skipped| index(skipped) != 0)) {
            return Err(Why::Level);
        }
        readable = readable && bit(entry, 61);
        writable = writable && bit(entry, 62);
        if needs.0 && !readable || needs.1 && !writable {
            return Err(Why::Denied);
        }
        let mut marked = entry;
        if had & 1 == 1 {
            marked |= 1 << 5;
        }
        if had == 3 && !is_pde && dirties && writable {
            marked |= 1 << 6;
        }
        if marked != entry {
            memory.store(at, marked);
        }
        if is_pde {
            table = bits(entry, 51, 12) * 4096;
            level = next;
            continue;
        }
        let size = 1u128 << log2;
        return Ok(Page {
            first: ((bits(entry, 51, 12) * 4096) as u128 / size * size) as u64,
            size,
            readable,
            writable: writable && (had != 3 || bit(marked, 6)),
            executable: false,
        });
    }
}
