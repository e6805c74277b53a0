//! What the files of a performance monitoring unit in sysfs say: `events/…` and `format/…`.

/// Where a term's value stands in an event's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// 0 for `config`, 1 for `config1`.
    pub word: usize,
    /// Its lowest bit there.
    pub low: u32,
    /// Its bits.
    pub bits: u32,
}

impl Field {
    /// Reads `config:0-7`, `config1:32-51` or `config:63`.
    pub fn parse(text: &str) -> Option<Self> {
        let (word, bits) = text.trim().split_once(':')?;
        let word = match word {
            "config" => 0,
            "config1" => 1,
            _ => return None,
        };
        let (low, high) = bits.split_once('-').unwrap_or((bits, bits));
        let (low, high): (u32, u32) = (low.parse().ok()?, high.parse().ok()?);
        (low <= high && high < 64).then(|| Self {
            word,
            low,
            bits: high - low + 1,
        })
    }

    /// Puts a value there; `None` if it has more bits than the field.
    pub fn put(self, config: &mut [u64; 2], value: u64) -> Option<()> {
        if self.bits < 64 && value >> self.bits != 0 {
            return None;
        }
        config[self.word] |= value << self.low;
        Some(())
    }
}

/// The terms of an event, as in `csource=0x11`; a term without a value is 1.
pub fn terms(text: &str) -> Option<Vec<(&str, u64)>> {
    let term = |term| {
        let (name, value) = str::split_once(term, '=').unwrap_or((term, "1"));
        let value = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        Some((name, value.ok()?))
    };
    text.trim().split(',').map(term).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_goes_where_its_format_says() {
        let mut config = [0; 2];
        let devid = Field::parse("config:8-23\n").unwrap();
        let mask = Field::parse("config1:0-15").unwrap();
        assert_eq!(devid.put(&mut config, 0x28), Some(()));
        assert_eq!(mask.put(&mut config, 0xffff), Some(()));
        assert_eq!(config, [0x2800, 0xffff]);
        assert_eq!(mask.put(&mut config, 0x1_0000), None);
        let one = Field::parse("config:63").unwrap();
        assert_eq!(one.put(&mut config, 1), Some(()));
        assert_eq!(config[0], 0x8000_0000_0000_2800);
        for bad in ["config2:0-7", "config:7-0", "config:0-64", "config"] {
            assert_eq!(Field::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_event_is_a_list_of_terms() {
        assert_eq!(terms("csource=0x11\n"), Some(vec![("csource", 0x11)]));
        let both = vec![("event", 3), ("edge", 1)];
        assert_eq!(terms("event=3,edge"), Some(both));
        assert_eq!(terms("event=x"), None);
    }
}
