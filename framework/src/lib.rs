//! Annals.

pub mod aggregate;
#[cfg(all(unix, feature = "embedded"))]
pub mod embedded;
pub mod error;
pub mod event;
pub mod projector;
pub mod stream;
#[cfg(feature = "testing")]
pub mod testing;
pub mod view;

pub use aggregate::{Aggregate, Context};
pub use error::{BoxError, ExecuteError, InvalidInput, StoreError, Undecodable};
pub use event::{Event, Metadata, Recorded};
pub use projector::Projector;
pub use stream::{ExpectedVersion, Id, Position, Receipt, StreamId, Version};
pub use view::{Change, View};
