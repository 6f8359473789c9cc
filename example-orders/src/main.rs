//! An order service on Annals.

mod figures;
mod import;
mod order;
mod read_models;

fn main() {}
