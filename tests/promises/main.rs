//! Annals keeps its promises: one module a promise, each test a sentence.

mod app;
mod append;
mod append_in;
mod embedded;
mod limits;
mod outcome;
mod protection;
mod proxy;
mod queue;
mod shop;
