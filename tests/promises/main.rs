//! Annals keeps its promises: one module a promise, each test a sentence.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod app;
mod embedded;
mod marker;
mod protection;
mod shop;
