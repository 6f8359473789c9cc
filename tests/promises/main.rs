//! Annals keeps its promises: one module a promise, each test a sentence.

mod embedded;
