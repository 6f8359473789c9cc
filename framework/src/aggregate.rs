//! What a user writes: an aggregate, pure rules over its own events.

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::Event;

/// What a command knows about its surroundings. The only source of time for [`Aggregate::handle`].
#[derive(Debug, Clone)]
pub struct Context {
    /// When the command is decided.
    pub now: DateTime<Utc>,
    /// The caller's id for the command, if it gave one.
    pub command_id: Option<Uuid>,
    /// The id that joins everything one request led to.
    pub correlation_id: Uuid,
    /// The event that led to this command.
    pub causation_id: Option<Uuid>,
    /// Who sent it.
    pub actor: Option<String>,
}

/// Rules that hold at every moment, over the events of one stream.
///
/// Pure: no database, no clock but [`Context::now`], no `async`. [`handle`](Aggregate::handle) decides, from the state
/// that the stream's events led to, which events a command adds; [`apply`](Aggregate::apply) lets one event happen. The
/// framework loads, caches, appends, and decides again when another writer was faster, so a command may be handled more
/// than once and takes effect once.
///
/// # Example
/// ```
/// use annals::{Aggregate, Context, Event, testing::given};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
/// enum DoorEvent { Opened, Closed }
/// impl Event for DoorEvent {}
///
/// #[derive(Serialize)]
/// enum DoorCommand { Open, Close }
///
/// #[derive(Debug, PartialEq, thiserror::Error)]
/// #[error("the door is closed already")]
/// struct ClosedAlready;
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Door { open: bool }
///
/// impl Aggregate for Door {
///     const TYPE: &'static str = "door";
///     type Command = DoorCommand;
///     type Event = DoorEvent;
///     type Error = ClosedAlready;
///
///     fn handle(&self, command: &DoorCommand, _: &Context) -> Result<Vec<DoorEvent>, ClosedAlready> {
///         match (self.open, command) {
///             (false, DoorCommand::Open) => Ok(vec![DoorEvent::Opened]),
///             (true, DoorCommand::Open) => Ok(vec![]), // it already took effect
///             (true, DoorCommand::Close) => Ok(vec![DoorEvent::Closed]),
///             (false, DoorCommand::Close) => Err(ClosedAlready),
///         }
///     }
///
///     fn apply(&mut self, event: &DoorEvent) {
///         self.open = matches!(event, DoorEvent::Opened);
///     }
/// }
///
/// given::<Door>([DoorEvent::Opened]).when(DoorCommand::Close).then([DoorEvent::Closed]);
/// given::<Door>([]).when(DoorCommand::Close).then_rejected(ClosedAlready);
/// ```
pub trait Aggregate: Default + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The category of its streams: `order` for `order-0198`. Stored with every event; never change it.
    const TYPE: &'static str;
    /// Raise it when the shape of the state changes: older snapshots are then ignored.
    const SNAPSHOT_VERSION: u32 = 1;
    /// A snapshot is saved each time a stream grows past a multiple of this many events; 0 saves none.
    const SNAPSHOT_EVERY: u32 = 100;
    /// What can be asked of it. Serialized only to recognise a repeated command.
    type Command: Serialize + Send + Sync + 'static;
    /// What happens to it.
    type Event: Event;
    /// Why it refuses.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Decides which events `command` adds. None at all is an accepted decision that changes nothing.
    ///
    /// # Errors
    /// A rejection: the command breaks a rule, and nothing happens.
    fn handle(&self, command: &Self::Command, context: &Context) -> Result<Vec<Self::Event>, Self::Error>;

    /// Lets `event` happen. It has happened: there is nothing to refuse.
    fn apply(&mut self, event: &Self::Event);
}
