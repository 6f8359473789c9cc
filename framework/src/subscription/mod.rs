//! Followers: whatever reads the log in position order and remembers how far it has come.
//!
//! ```text
//! tail (one a process) ─► recent events in memory ─► follower ─► read model and checkpoint, one transaction
//!                              └─ a follower that is further behind reads for itself until it has caught up
//! ```

mod checkpoint;
mod failure;
mod follower;
mod recent;
mod tail;
mod wake_up;

pub use self::follower::{FollowerState, FollowerStatus};
pub(crate) use self::{
    checkpoint::{Checkpoint, ReadModel},
    failure::FollowError,
    follower::{Applied, Batch, Follower, Handle},
    tail::Tail,
    wake_up::send as send_wake_ups,
};
