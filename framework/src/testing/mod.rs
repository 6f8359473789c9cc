//! The testing kit.
//!
//! Rules are tested in the words of the rules: given these events, when this happens, then that. [`given`] tests an
//! aggregate, [`given_view`] a view, [`given_saga`] a saga. None needs a database, all have time under the test's control, and all
//! send every event and document through the form in which it is stored: a field that does not survive storage fails the
//! test.
//!
//! What does need a database, a projector above all, gets a fresh one from `database()` (feature `testing`), and
//! `crash_everywhere` kills a saga at every write.

mod aggregate;
#[cfg(all(unix, feature = "testing"))]
mod crash;
#[cfg(all(unix, feature = "testing"))]
mod database;
mod saga;
#[cfg(all(unix, feature = "testing"))]
mod server;
mod storage;
mod view;
#[cfg(all(unix, feature = "testing"))]
mod watchdog;

pub use aggregate::{Given, Then, When, given};
#[cfg(all(unix, feature = "testing"))]
pub use crash::crash_everywhere;
#[cfg(all(unix, feature = "testing"))]
pub use database::{TestDatabase, database};
pub use saga::{GivenSaga, given_saga};
#[cfg(all(unix, feature = "testing"))]
pub use server::{TestServer, server};
pub use storage::recorded;
pub use view::{GivenView, given_view};
