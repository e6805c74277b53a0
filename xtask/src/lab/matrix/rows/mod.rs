//! The rows, as data: what differs from the usual machine and the usual checks, and what must be
//! seen.

mod dma;
mod events;
mod features;
mod firmware;
mod interrupts;
mod travel;

use super::Row;
use super::case::Version::{self, Built, V6_12, V7};

/// Every kernel.
const ALL: &[Version] = &[V6_12, V7, Built];
/// The newest of Debian's, and the one that shows what the driver does.
const NEW: &[Version] = &[V7, Built];
/// Those that enable 2048 interrupts are the same.
const HAS_2K: &[Version] = NEW;

/// Every row, in the order of the matrix.
pub(super) fn rows() -> impl Iterator<Item = &'static Row> {
    let mut rows: Vec<_> = [
        interrupts::ROWS,
        dma::ROWS,
        firmware::ROWS,
        events::ROWS,
        features::ROWS,
        travel::ROWS,
    ]
    .into_iter()
    .flatten()
    .collect();
    rows.sort_by_key(|row| number(row.name));
    rows.into_iter()
}

/// The number of a row: 4 of `M4-2k`.
fn number(name: &str) -> u32 {
    let digits = name.trim_start_matches('M');
    let digits = digits.split('-').next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_the_matrix_and_all_have_a_number() {
        let numbers: Vec<_> = rows().map(|row| number(row.name)).collect();
        assert!(numbers.is_sorted());
        assert_eq!(numbers.iter().filter(|number| **number == 0).count(), 1);
    }
}
