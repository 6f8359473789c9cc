//! An order service on Annals.

mod import;
mod order;
mod read_models;

fn main() {}
