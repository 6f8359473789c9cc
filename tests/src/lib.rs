//! The tests of Annals are in `promises/`, one module a promise.
