//! Annals keeps its promises: one module a promise, each test a sentence.

mod app;
mod embedded;
mod protection;
mod shop;
