//! Tests of rules, in the words of the rules: given these events, when this happens, then that.
//!
//! [`given`] tests an aggregate, [`given_view`] a view. Neither needs a database, both have time under the test's
//! control, and both send every event and document through the form in which it is stored: a field that does not
//! survive storage fails the test.

mod aggregate;
mod storage;
mod view;

pub use aggregate::{Given, Then, When, given};
pub use storage::recorded;
pub use view::{GivenView, given_view};
