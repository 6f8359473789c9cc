//! A gateway that takes payments, books shipments and sends messages to customers, as a process of its own: what the shop calls
//! outside.
//!
//! It keeps books, answers a request that is repeated under its `Idempotency-Key` as it did before, and has switches for
//! whatever goes wrong with such gateways.

mod api;
mod books;
mod client;
mod server;
mod switches;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use api::{Charge, Ledger, Shipment, ToSend};
pub(crate) use client::{Client, DEFAULT_URL};
pub(crate) use server::{DEFAULT_PORT, run};
pub(crate) use switches::Switches;
