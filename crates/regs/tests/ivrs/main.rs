//! The IVRS table: known values, literal images, round trips, and any bytes at all.

mod build;
mod hostile;
mod images;
mod sample;
