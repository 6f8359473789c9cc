//! What a follower was given, and what is wrong with it.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use annals::{Annals, Position, ReadLog};

use super::pause;

/// The events that one follower was given, checked as they come.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) positions: Vec<i64>,
    versions: HashMap<String, i64>,
    faults: Vec<String>,
    /// How often it looked while the safe position was behind the sequence.
    pub(super) held: u64,
}

impl Seen {
    /// The position behind which the follower reads on.
    pub(super) fn last(&self) -> i64 {
        self.positions.last().copied().unwrap_or(0)
    }

    pub(super) fn is_faulty(&self) -> bool {
        !self.faults.is_empty()
    }

    pub(super) fn take(&mut self, position: i64, stream: &str, version: i64) {
        let last = self.last();
        if position <= last {
            self.faults.push(format!("position {position} came behind {last}"));
        }
        self.positions.push(position);
        match self.versions.get_mut(stream) {
            Some(before) if version == *before + 1 => *before = version,
            None if version == 1 => drop(self.versions.insert(stream.to_owned(), 1)),
            before => {
                let before = before.copied().unwrap_or(0);
                self.faults.push(format!("version {version} of {stream} came behind {before}"));
                self.versions.insert(stream.to_owned(), version);
            }
        }
    }

    /// Reads a page of the log as any follower may. Returns how many events it brought.
    pub(super) async fn read_page(&mut self, store: &Annals) -> usize {
        let read = ReadLog { after: Position::new(self.last()), ..ReadLog::default() };
        let page = store.read_log_page(read, 1_000).await.unwrap();
        for event in &page.events {
            self.take(event.position.get(), event.stream.as_str(), event.version.get());
        }
        page.events.len()
    }

    /// Reads everything up to the safe position, with a statement of its own. Returns how many events that were.
    pub(super) async fn read_up_to_horizon(&mut self, store: &Annals) -> usize {
        let horizon = store.horizon().await.unwrap();
        self.held += u64::from(horizon.safe < horizon.drawn);
        let sql = "select position, stream, version from annals.events
           where position > $1 and position <= $2 order by position";
        let rows: Vec<(i64, String, i64)> =
            sqlx::query_as(sql).bind(self.last()).bind(horizon.safe.get()).fetch_all(store.pool()).await.unwrap();
        rows.iter().for_each(|(position, stream, version)| self.take(*position, stream, *version));
        rows.len()
    }

    /// Follows the log until all writers have ended and nothing is left; shows `progress` how far it is.
    pub(super) async fn follow(
        mut self,
        store: &Annals,
        by_pages: bool,
        ended: &AtomicBool,
        progress: impl Fn(&Self),
    ) -> Self {
        loop {
            let last_look = ended.load(Ordering::SeqCst);
            let found = match by_pages {
                true => self.read_page(store).await,
                false => self.read_up_to_horizon(store).await,
            };
            progress(&self);
            match (found, last_look) {
                (0, true) => return self,
                (0, false) => pause(1).await,
                _ => {}
            }
        }
    }

    /// Compares with what is stored, whose positions are `stored`.
    pub(super) fn judge(&self, stored: &[i64]) -> Verdict {
        let seen: HashSet<i64> = self.positions.iter().copied().collect();
        let there: HashSet<i64> = stored.iter().copied().collect();
        Verdict {
            lost: stored.iter().copied().filter(|position| !seen.contains(position)).collect(),
            unknown: self.positions.iter().copied().filter(|position| !there.contains(position)).collect(),
            twice: self.positions.len() - seen.len(),
            faults: self.faults.clone(),
        }
    }
}

/// What a follower got wrong.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// Stored, and never given to it.
    pub(super) lost: Vec<i64>,
    /// Given to it, and not stored.
    pub(super) unknown: Vec<i64>,
    pub(super) twice: usize,
    /// Out of order, in positions or in a stream's versions.
    pub(super) faults: Vec<String>,
}

/// The positions of all committed events, in order.
pub(super) async fn stored(store: &Annals) -> Vec<i64> {
    sqlx::query_scalar("select position from annals.events order by position").fetch_all(store.pool()).await.unwrap()
}

/// The streams whose versions are not 1..n.
pub(super) async fn streams_with_holes(store: &Annals) -> Vec<String> {
    let sql = "select stream from annals.events group by stream having min(version) <> 1 or max(version) <> count(*)";
    sqlx::query_scalar(sql).fetch_all(store.pool()).await.unwrap()
}

/// The streams in which a later version stands at an earlier position.
pub(super) async fn streams_out_of_order(store: &Annals) -> Vec<String> {
    let sql = "select distinct stream from (
         select stream, position < lag(position) over (partition by stream order by version) as back from annals.events
       ) steps where back";
    sqlx::query_scalar(sql).fetch_all(store.pool()).await.unwrap()
}
