//! Annals keeps its promises: one module a promise, each test a sentence.

mod app;
mod append;
mod append_in;
mod embedded;
mod limits;
mod migrate;
mod model;
mod outcome;
mod protection;
mod proxy;
mod queue;
mod read;
mod shop;
