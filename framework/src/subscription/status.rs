//! What a process knows of a follower: of the partitions that it runs, at once; of the others, from the store.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::Position;

/// What a follower is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FollowerState {
    /// It follows the log.
    Running,
    /// It has not begun yet, or no process has taken it yet.
    Starting,
    /// An event fails at which it halts, or the database does, for it or for the tail: it waits and tries again.
    Retrying,
    /// Somebody paused it.
    Paused,
    /// It halted at failures that it must not pass: somebody has to look, and resume it.
    Halted,
    /// The store's model is of a version that this build does not have: an older one while this build's is being made, or a
    /// newer one. A build that has it follows.
    OtherVersion,
    /// The app was shut down.
    Stopped,
}

/// How far a follower has come, and what keeps it: over all its partitions.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowerStatus {
    /// The read model's name.
    pub name: &'static str,
    /// What it is doing: of its partitions, the one that is worst off.
    pub state: FollowerState,
    /// Every event up to here has taken effect, or is parked.
    pub position: Position,
    /// How many positions the safe end of the log is ahead.
    pub behind: i64,
    /// How many partitions it has, and how many of them this process runs.
    pub partitions: usize,
    /// See `partitions`.
    pub here: usize,
    /// (event, key) pairs that are parked, as the store has it.
    pub parked: i64,
    /// Failures in a row.
    pub attempts: u32,
    /// The last failure, while it is retrying; why it is paused or halted.
    pub last_error: Option<String>,
    /// The event that fails, once it is known.
    pub failed_position: Option<Position>,
    /// When it tries again.
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// One partition, as this process sees it.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) state: FollowerState,
    pub(super) position: Position,
    pub(super) here: bool,
    pub(super) parked: i64,
    pub(super) attempts: u32,
    pub(super) last_error: Option<String>,
    pub(super) failed_position: Option<Position>,
    pub(super) next_attempt_at: Option<DateTime<Utc>>,
}

impl Shown {
    pub(super) fn new(state: FollowerState, position: Position) -> Self {
        Self {
            state,
            position,
            here: false,
            parked: 0,
            attempts: 0,
            last_error: None,
            failed_position: None,
            next_attempt_at: None,
        }
    }
}

/// A follower of this app: what its live partitions do, wherever they run.
pub(crate) struct Seat {
    pub(crate) name: &'static str,
    partitions: Mutex<BTreeMap<(i64, i32), Shown>>,
    position: watch::Sender<Position>,
    /// Who waits for it, while some of it runs elsewhere.
    waiting: AtomicUsize,
}

impl Seat {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            partitions: Mutex::default(),
            position: watch::Sender::new(Position::START),
            waiting: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(i64, i32), Shown>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, partitions: &BTreeMap<(i64, i32), Shown>) {
        let least = partitions.values().map(|shown| shown.position).min().unwrap_or(Position::START);
        self.position.send_if_modified(|position| std::mem::replace(position, least) != least);
    }

    /// Replaces what is known: these are the live partitions now.
    pub(super) fn set(&self, known: BTreeMap<(i64, i32), Shown>) {
        let mut partitions = self.lock();
        *partitions = known;
        self.publish(&partitions);
    }

    /// What is shown of one partition, or the start of it.
    pub(super) fn get(&self, generation: i64, partition: i32) -> Option<Shown> {
        self.lock().get(&(generation, partition)).cloned()
    }

    /// Changes what is shown of a partition, if it is one of the live ones.
    pub(super) fn show(&self, generation: i64, partition: i32, change: impl FnOnce(&mut Shown)) {
        if let Some(shown) = self.lock().get_mut(&(generation, partition)) {
            change(shown);
        }
    }

    /// Shows how far a partition has come.
    pub(super) fn move_to(&self, generation: i64, partition: i32, position: Position) {
        let mut partitions = self.lock();
        if let Some(shown) = partitions.get_mut(&(generation, partition)) {
            shown.position = position;
            self.publish(&partitions);
        }
    }

    /// Shows that the store cannot be asked.
    pub(super) fn trouble(&self, error: &str) {
        for shown in self.lock().values_mut().filter(|shown| !shown.here) {
            (shown.state, shown.last_error) = (FollowerState::Retrying, Some(error.to_owned()));
        }
    }

    /// Shows that nothing runs here any more.
    pub(super) fn stop(&self) {
        for shown in self.lock().values_mut() {
            (shown.state, shown.here) = (FollowerState::Stopped, false);
        }
    }

    /// The least position of the live partitions, whenever it changes.
    pub(crate) fn position(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Lets the store be asked often for what runs elsewhere, as long as the returned value lives.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Whether somebody waits for partitions that another process runs.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && self.lock().values().any(|shown| !shown.here)
    }

    /// What the follower does, with the log final up to `safe`.
    pub(crate) fn status(&self, safe: Position) -> FollowerStatus {
        let partitions = self.lock();
        let worst = partitions.values().max_by_key(|shown| (shown.state, shown.attempts));
        let position = partitions.values().map(|shown| shown.position).min().unwrap_or(Position::START);
        FollowerStatus {
            name: self.name,
            state: worst.map_or(FollowerState::Starting, |shown| shown.state),
            position,
            behind: (safe.get() - position.get()).max(0),
            partitions: partitions.len(),
            here: partitions.values().filter(|shown| shown.here).count(),
            parked: partitions.values().map(|shown| shown.parked).sum(),
            attempts: worst.map_or(0, |shown| shown.attempts),
            last_error: worst.and_then(|shown| shown.last_error.clone()),
            failed_position: worst.and_then(|shown| shown.failed_position),
            next_attempt_at: worst.and_then(|shown| shown.next_attempt_at),
        }
    }
}

/// Somebody waits for a follower.
pub(crate) struct Waiting<'s>(&'s Seat);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
