//! Names of functions, by address.

/// The functions of a kernel or a program.
#[derive(Clone, Debug, Default)]
pub struct Names(Vec<(u64, String)>);

impl FromIterator<(u64, String)> for Names {
    /// Of functions and where each begins, in any order.
    fn from_iter<T: IntoIterator<Item = (u64, String)>>(functions: T) -> Self {
        let mut all: Vec<_> = functions.into_iter().collect();
        all.sort();
        Self(all)
    }
}

impl Names {
    /// Those of a kernel, as `/proc/kallsyms` has them.
    pub fn of_kernel(text: &str) -> Self {
        text.lines()
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let at = u64::from_str_radix(words.next()?, 16).ok()?;
                let kind = words.next()?;
                let name = words.next()?;
                matches!(kind, "t" | "T" | "w" | "W").then(|| (at, name.to_owned()))
            })
            .collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The function that an address is in: the last one that begins before it or there.
    pub fn at(&self, address: u64) -> Option<&str> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        Some(&self.0[after.checked_sub(1)?].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_name_of_the_function_that_it_is_in() {
        let names = Names::of_kernel("20 T b\n10 t a [module]\n18 d data\n");
        assert_eq!(names.at(0x1f), Some("a"));
        assert_eq!(names.at(0x20), Some("b"));
        assert_eq!(names.at(0xf), None);
        assert!(Names::default().is_empty());
    }
}
