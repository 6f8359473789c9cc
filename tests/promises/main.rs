//! Annals keeps its promises: one module a promise, each test a sentence.

mod app;
mod command;
mod embedded;
mod follow;
mod kit;
mod shop;
