//! Parked events of a partition: what is remembered of them, and how they are tried again, each key in order.

use std::{sync::Arc, time::Duration};

use sqlx::Row;
use tokio::time::{Instant, timeout};

use super::{Place, Runner};
use crate::{
    Payload, Recorded,
    error::StoreError,
    store::{BATCH_DEADLINE, Names, recorded},
    subscription::{
        batch::{Applied, Letter, Poison, Work},
        failure::Failure,
    },
};

/// Parked events that are read at once, of one key or of several.
const RETRIED: usize = 500;
/// Keys that are looked for at once, at least.
const KEYS: usize = 20;
/// How long one turn of retries takes, about.
const TURN: Duration = Duration::from_millis(20);

type Event = Arc<Recorded<Payload>>;

impl Runner {
    /// Keeps in mind which keys are parked, and when the first of them is tried again.
    pub(super) fn remember(&mut self, letters: &[Letter]) {
        if letters.is_empty() {
            return;
        }
        let parked = Arc::make_mut(&mut self.parked);
        letters.iter().for_each(|letter| parked.add(&letter.key, letter.by_stream));
        if letters.iter().any(|letter| letter.told.is_some())
            && let Some(delay) = self.setting.policy.delay(1)
        {
            // The delay in the database has a chance of its own.
            let due = Instant::now() + delay;
            self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
        }
        for told in letters.iter().filter_map(|letter| letter.told.as_ref().map(|told| (letter, told))) {
            let (letter, told) = told;
            let (follower, position, error) = (self.unit.name, letter.position.get(), &told.text);
            tracing::error!(follower, position, key = letter.key, %error, "an event failed and is parked");
        }
    }

    /// Tries parked events again that are due, key by key, each in order. Returns whether the place is still good.
    pub(super) async fn retry_due(&mut self, place: &mut Place) -> Result<bool, Failure> {
        let (unit, store, begun) = (self.unit.clone(), self.setting.store.clone(), Instant::now());
        let follower = self.setting.follower.clone();
        let at_once = follower.keys_at_once();
        let listing = store.inner.sql.list_due.query();
        let listing = listing.bind(unit.name).bind(unit.generation).bind(unit.partition).bind(at_once.max(KEYS) as i64);
        let rows = store.inner.followers.all("list what is to be tried again", listing).await?;
        // Whoever makes something due says so, or the next look of the process finds it.
        self.next_due = (!rows.is_empty()).then(Instant::now);
        for rows in rows.chunks(at_once) {
            let mut keys = vec![];
            for row in rows {
                let (key, by_stream, attempts): (String, bool, i32) = (row.get(0), row.get(1), row.get(3));
                // After a failure one by one: what comes before the event that fails must take effect.
                let limit = if attempts > 0 { 1 } else { RETRIED / rows.len() };
                let events = self.read_parked(&key, by_stream, limit).await?;
                keys.push((key, by_stream, events));
            }
            if keys.len() > 1 {
                let events = keys.iter().map(|(.., events)| events.clone()).collect();
                let working = follower.work_ahead(events, &self.setting.policy);
                let has_ended = timeout(self.setting.policy.deadline.min(BATCH_DEADLINE), working).await.is_ok();
                let (settled, mut open): (Vec<_>, Vec<_>) = keys
                    .into_iter()
                    .partition(|(.., events)| events.first().is_some_and(|event| follower.is_settled(event.position)));
                keys = settled;
                keys.iter_mut().for_each(|(.., events)| self.keep_settled(events));
                // What was not begun has its turn again. But if that is all, or something did not end, one is tried by itself, which
                // says why.
                if !open.is_empty() && (keys.is_empty() || !has_ended) {
                    let (key, by_stream, mut events) = open.swap_remove(0);
                    events.truncate(1);
                    keys.push((key, by_stream, events));
                }
            }
            for (key, by_stream, events) in keys {
                if !self.retry(place, key, by_stream, events).await? {
                    return Ok(false);
                }
            }
            // The others have their turn again after what is new.
            if self.setting.stop.is_cancelled() || begun.elapsed() > TURN {
                break;
            }
        }
        Ok(true)
    }

    /// Leaves of a key's events those of which it is known what became of them, but one at least.
    fn keep_settled(&self, events: &mut Vec<Event>) {
        let is_settled = |event: &&Event| self.setting.follower.is_settled(event.position);
        events.truncate(events.iter().take_while(is_settled).count().max(1));
    }

    /// Up to `limit` events that are parked for a key, in order.
    async fn read_parked(&self, key: &str, by_stream: bool, limit: usize) -> Result<Vec<Event>, StoreError> {
        let (unit, store) = (&self.unit, &self.setting.store);
        let reading = store.inner.sql.read_parked.query().bind(unit.name).bind(unit.generation).bind(unit.partition);
        let reading = reading.bind(key.to_owned()).bind(by_stream).bind(limit as i64);
        let rows = store.inner.followers.all("read parked events", reading).await?;
        let mut names = Names::default();
        let events = rows.iter().map(|row| recorded(row, &mut names).map(Arc::new)).collect::<Result<_, _>>();
        events.map_err(StoreError::on("read parked events"))
    }

    /// Tries the first events of a key again. Returns whether the place is still good.
    async fn retry(
        &mut self,
        place: &mut Place,
        key: String,
        by_stream: bool,
        mut events: Vec<Event>,
    ) -> Result<bool, Failure> {
        let mut poison = vec![];
        loop {
            let places = (place.committed, place.committed.position, place.committed.position);
            let work = Work::Retry { key: key.clone(), by_stream };
            let poison_now = std::mem::take(&mut poison);
            match self.apply(events.clone(), places, (false, false), work, poison_now).await {
                Ok(Applied::Fenced | Applied::Held | Applied::Unheld(_)) => return Ok(false),
                Ok(Applied::Committed(letters)) => {
                    place.committed.fence += 1;
                    // A stream whose keys are known now may have failed for one of them.
                    let parked = Arc::make_mut(&mut self.parked);
                    letters.iter().for_each(|letter| parked.add(&letter.key, letter.by_stream));
                    for told in letters.iter().filter_map(|letter| letter.told.as_ref()) {
                        let (follower, error) = (self.unit.name, &told.text);
                        tracing::warn!(follower, key, %error, "a parked event failed again");
                    }
                    return Ok(true);
                }
                Err(Failure::Events { count, .. }) if count > 1 => events.truncate(count / 2),
                Err(Failure::Unfinished(_)) => self.keep_settled(&mut events),
                Err(Failure::Events { first, at, told, .. }) => {
                    let Some(position) = at.or(first) else { return Ok(true) };
                    poison = vec![Poison { position, key: None, by_stream, told }];
                }
                Err(Failure::Hung(found)) => poison = vec![found],
                Err(failure) => return Err(failure),
            }
        }
    }
}
