//! Followers: whatever reads the log in position order and remembers how far it has come.
//!
//! ```text
//! coordinator (one a process) ─► what this process owns ─► a runner for each partition
//! tail (one a process) ─► recent events in memory ─► runner ─► read model and checkpoint, one transaction
//!                              └─ a runner that is further behind reads for itself until it has caught up
//! ```

mod batch;
mod control;
mod coordinator;
mod effect;
mod explain;
mod failure;
mod model;
mod partition;
mod policy;
mod rebuild;
mod recent;
mod replay;
mod runner;
mod status;
mod tail;
mod verify;
mod wake_up;

pub(crate) use self::{
    batch::{Applied, Batch, Checkpoint, Follower, Letters, Unit, Work, guarded},
    coordinator::{Coordinator, Registered, Started},
    effect::{Done, EffectFollower, Handle, Time},
    failure::{FollowError, message},
    model::Model,
    replay::{FollowerReplay, REPLAY_BATCH, aside},
    status::Seat,
    verify::verify,
    wake_up::send as send_wake_ups,
};
pub use self::{
    control::{By, DeadLetter, DeadLetterGroup, DeadLetters, FollowerAction, Followers, PartitionLag},
    explain::{Explained, ExplainedLetter, Fate},
    model::Begin,
    policy::{FailurePolicy, OnFailure},
    status::{FollowerState, FollowerStatus},
    verify::{Difference, Verified},
};
