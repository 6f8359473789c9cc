//! Annals keeps its promises: one module a promise, each test a sentence.

mod app;
mod append;
mod append_in;
mod embedded;
mod protection;
mod queue;
mod shop;
