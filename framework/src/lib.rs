#![doc = include_str!("../README.md")]

pub mod aggregate;
pub mod app;
pub mod breaker;
pub mod config;
#[cfg(all(unix, feature = "embedded"))]
pub mod embedded;
pub mod error;
pub mod event;
pub mod execute;
pub mod projector;
pub mod reactor;
pub mod saga;
mod sql;
pub mod store;
pub mod stream;
pub mod subscription;
pub mod testing;
pub mod view;

pub use aggregate::{Aggregate, Context};
pub use app::{App, Builder, Follow, Lag, ReplayFailure, ReplayProgress, Replayed, StartError, WaitError};
pub use breaker::{CircuitBreaker, CircuitBreakers, Target};
pub use config::{Config, Limits, Pooler};
pub use error::{BoxError, ExecuteError, InvalidInput, StoreError, Undecodable};
pub use event::{ContractError, Event, Metadata, Payload, PayloadLimits, Recorded, Upcast};
pub use execute::{CommandCounts, Either, Options};
pub use projector::Projector;
pub use reactor::{Reaction, Reactor};
pub use saga::{
    Attention, Cx, Expectation, Facts, FailureKind, Found, Outcome, RetryPolicy, Saga, SagaCounts, SagaEvent,
    SagaFilter, SagaInstance, SagaState, Sagas, StepError, StepKeys, Steps,
};
pub use store::{Annals, Append, Finding, Holder, Horizon, NewEvent, Page, ReadLog, ReadStream, Roles, Severity};
pub use stream::{ExpectedVersion, Id, Position, Receipt, StreamId, Version};
pub use subscription::{
    Begin, By, DeadLetter, DeadLetterGroup, DeadLetters, Difference, Explained, ExplainedLetter, FailurePolicy, Fate,
    FollowerAction, FollowerState, FollowerStatus, Followers, OnFailure, PartitionLag, Verified,
};
pub use view::{Change, KeyRebuilt, View};
