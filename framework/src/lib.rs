//! Annals.

pub mod aggregate;
pub mod error;
pub mod event;
pub mod projector;
pub mod stream;
pub mod testing;
pub mod view;

pub use aggregate::{Aggregate, Context};
pub use error::{BoxError, ExecuteError, InvalidInput, StoreError, Undecodable};
pub use event::{ContractError, Event, Metadata, Payload, PayloadLimits, Recorded, Upcast};
pub use projector::Projector;
pub use stream::{ExpectedVersion, Id, Position, Receipt, StreamId, Version};
pub use view::{Change, View};
