//! The testing kit: databases and servers for tests that need a real Postgres.

#[cfg(unix)]
mod database;
#[cfg(unix)]
mod server;
#[cfg(unix)]
mod watchdog;

#[cfg(unix)]
pub use database::{TestDatabase, database};
#[cfg(unix)]
pub use server::{TestServer, server};
