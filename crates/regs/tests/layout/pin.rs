//! The macro that checks one format against a table of literal positions.

/// A field value of any width, to and from bits.
pub(crate) trait FieldValue: Copy {
    /// The value whose bits are `bits`.
    fn of(bits: u128) -> Self;
    /// The bits of the value.
    fn bits(self) -> u128;
}

impl FieldValue for bool {
    fn of(bits: u128) -> Self {
        bits != 0
    }
    fn bits(self) -> u128 {
        u128::from(self)
    }
}

macro_rules! field_value {
    ($($int:ty),*) => {
        $(
            impl FieldValue for $int {
                fn of(bits: u128) -> Self {
                    <$int>::try_from(bits).expect("the field is wider than its type")
                }
                fn bits(self) -> u128 {
                    u128::from(self)
                }
            }
        )*
    };
}

field_value!(u8, u16, u32, u64);

/// A mask of the bits from `lo` to `hi`.
pub(crate) fn mask(hi: u32, lo: u32) -> u128 {
    assert!(lo <= hi && hi < 128, "[{hi}:{lo}] is no field");
    (u128::MAX >> (127 - (hi - lo))) << lo
}

/// `pin!(test_name, Type, word, first F, reserved MASK == [CONSTANTS], { getter, setter [hi:lo]; })`
///
/// F is the number of the word's first bit in the whole structure. Checks per field: all ones set
/// exactly the literal bits; each single bit of the word shows up in the field at its place, or
/// not at all; and the value prints. Then: no two fields overlap, and the bits of no field are exactly the reserved mask,
/// which the crate's constants repeat.
macro_rules! pin {
    (
        $test:ident, $type:ty, $word:ty, first $first:literal,
        reserved $reserved:literal $(== [$($constant:expr),*])?,
        { $($getter:ident, $setter:ident [$hi:literal $(: $lo:literal)?];)* }
    ) => {
        #[test]
        fn $test() {
            use crate::pin::{FieldValue, mask};
            let mut named: u128 = 0;
            $({
                let name = stringify!($getter);
                let bounds = [$hi $(, $lo)?];
                let hi: u32 = bounds[0] - $first;
                let lo: u32 = bounds[bounds.len() - 1] - $first;
                let literal = mask(hi, lo);
                let ones = literal >> lo;
                let all_ones = <$type>::from_bits(0).$setter(FieldValue::of(ones)).into_bits();
                assert_eq!(u128::from(all_ones), literal, "{name} set to all ones");
                for bit in 0..<$word>::BITS {
                    let got = FieldValue::bits(<$type>::from_bits(1 << bit).$getter());
                    let want = (literal & (1 << bit)) >> lo;
                    assert_eq!(got, want, "{name} when only bit {bit} is set");
                }
                let printed = <$type>::from_bits(literal as $word).to_string();
                assert!(!printed.is_empty(), "{name} set to all ones prints nothing");
                assert_eq!(named & literal, 0, "{name} overlaps a field before it");
                named |= literal;
            })*
            let reserved: $word = $reserved;
            assert_eq!(!named & u128::from(<$word>::MAX), u128::from(reserved), "reserved");
            $($(assert_eq!($constant, reserved, stringify!($constant));)*)?
        }
    };
}

pub(crate) use pin;
