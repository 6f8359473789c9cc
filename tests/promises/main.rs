//! Annals keeps its promises: one module a promise, each test a sentence.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod app;
mod append;
mod append_in;
mod command;
mod embedded;
mod follow;
mod kit;
mod limits;
mod marker;
mod migrate;
mod model;
mod outcome;
mod pooler;
mod protection;
mod proxy;
mod queue;
mod read;
mod saga;
mod shop;
