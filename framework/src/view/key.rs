//! One document of a view, folded anew from the log beside the view's owner.
//!
//! Nearly all of the log is folded before anything is held. Then the partition's checkpoint is locked, and its fence moved, so that
//! the owner commits nothing meanwhile and forgets what it knows; what has come since is folded, and the document put in place.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use sqlx::{Connection, PgConnection};

use super::follower::refuse_key;
use crate::{
    Change, Id, Payload, PayloadLimits, Position, ReadLog, Recorded, View,
    error::StoreError,
    event::{contract::Contracts, encode::to_json},
    store::{Annals, connect_shortly, within},
    subscription::{By, FollowError, guarded},
};

/// How often it begins again when the key's dead letters, or what is live, changed meanwhile.
const TRIES: usize = 5;
/// How many positions may be left to fold while the checkpoint is held, and how often it is tried to come so near.
const NEAR: i64 = 1_000;
const ROUNDS: usize = 20;
/// How long the checkpoint is held at most.
const HELD: Duration = Duration::from_secs(10);
/// Events that are read at once.
const PAGE: usize = 2_000;

/// What became of one document that was folded anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRebuilt {
    /// The view.
    pub name: String,
    /// The document's key.
    pub key: String,
    /// Up to where the log was folded: the checkpoint of the key's partition.
    pub position: Position,
    /// How many events changed the document.
    pub events: u64,
    /// Whether it was another one before.
    pub changed: bool,
    /// The document as it was, as JSON; none if there was none.
    pub before: Option<String>,
    /// The document as it is now; none if there is none.
    pub after: Option<String>,
}

/// Folds the document `key` of `V` anew, and puts it in place.
pub(crate) async fn rebuild_key<V: View>(
    store: &Annals,
    contracts: &Contracts,
    key: &Id,
    by: &By,
) -> Result<KeyRebuilt, StoreError> {
    if let Some(refusal) = refuse_key(key) {
        return Err(StoreError::Unfit(format!("{} has no such document: {refusal}", V::NAME)));
    }
    for _ in 0..TRIES {
        let fold = Fold::<V> { store, contracts, key, at: Position::START, events: 0, document: None };
        if let Some(rebuilt) = fold.run(by).await? {
            return Ok(rebuilt);
        }
    }
    Err(StoreError::Unfit(format!(
        "{} kept changing while {key:?} was folded, by a rebuild, other partitions, or dead letters that are tried again: try \
         again later",
        V::NAME
    )))
}

/// Where the key's partition stands.
struct Stand {
    generation: i64,
    partition: i32,
    position: Position,
    /// By position, and whether it is of a stream: whether it is discarded, or else parked.
    letters: BTreeMap<(i64, bool), bool>,
}

impl Stand {
    /// Whether what was folded up to `at` holds of `other`, too.
    fn agrees(&self, other: &Self, at: Position) -> bool {
        let letters = |stand: &Self| {
            stand
                .letters
                .iter()
                .map(|(at, discarded)| (*at, *discarded))
                .filter(|((position, _), _)| *position <= at.get())
                .collect::<Vec<_>>()
        };
        (self.generation, self.partition) == (other.generation, other.partition) && letters(self) == letters(other)
    }
}

struct Fold<'f, V> {
    store: &'f Annals,
    contracts: &'f Contracts,
    key: &'f Id,
    /// Up to where it is folded.
    at: Position,
    events: u64,
    document: Option<V>,
}

impl<V: View> Fold<'_, V> {
    /// None if it has to begin again.
    async fn run(mut self, by: &By) -> Result<Option<KeyRebuilt>, StoreError> {
        let mut conn = connect_shortly(self.store).await?;
        let Some(mut stand) = self.look(&mut conn).await? else { return Ok(None) };
        for _ in 0..ROUNDS {
            self.go_to(&stand).await?;
            let Some(now) = self.look(&mut conn).await? else { return Ok(None) };
            if !now.agrees(&stand, self.at) {
                return Ok(None);
            }
            stand = now;
            if stand.position.get() - self.at.get() <= NEAR {
                break;
            }
        }
        within(HELD, "put a document in place", self.finish(&stand, by, &mut conn)).await?
    }

    /// Where the key's partition stands; none if its partitions are just being changed.
    async fn look(&self, conn: &mut PgConnection) -> Result<Option<Stand>, StoreError> {
        let what = StoreError::on("read where a view stands");
        let (sql, name, key) = (&self.store.inner.sql, V::NAME, self.key);
        let reading = sql.read_key.typed().bind(name).bind(&**key);
        let found: Option<(i64, i32, bool, i32, i64)> = reading.fetch_optional(&mut *conn).await.map_err(&what)?;
        let Some((generation, version, rebuilding, partition, position)) = found else { return Ok(None) };
        if version != V::VERSION as i32 {
            return Err(StoreError::Unfit(format!(
                "{name} is live in version {version}, and this build has version {}: rebuild the key with a build of that version",
                V::VERSION
            )));
        }
        if rebuilding {
            return Err(StoreError::Unfit(format!(
                "{name} is being rebuilt, and its document {key:?} with it: wait for that, or cancel it first"
            )));
        }
        let listing = sql.list_key_letters.typed().bind(name).bind(generation).bind(partition).bind(&**key);
        let letters: Vec<(i64, bool, bool)> = listing.fetch_all(conn).await.map_err(&what)?;
        if let Some((parked, ..)) = letters.iter().find(|(_, by_stream, discarded)| !by_stream && !discarded) {
            return Err(self.parked(*parked));
        }
        let letters = letters.into_iter().map(|(at, by_stream, discarded)| ((at, by_stream), discarded)).collect();
        Ok(Some(Stand { generation, partition, position: Position::new(position), letters }))
    }

    fn parked(&self, position: i64) -> StoreError {
        StoreError::Unfit(format!(
            "{:?} of {} has events parked, the first at position {position}: retry or discard them first \
             (Annals::followers), or rebuild the whole view",
            self.key,
            V::NAME
        ))
    }

    /// Folds what the partition has applied up to where it stands.
    async fn go_to(&mut self, stand: &Stand) -> Result<(), StoreError> {
        let categories = self.contracts.categories_of::<V::Event>();
        let skipped_types: Vec<String> = V::SKIPS.iter().map(ToString::to_string).collect();
        while self.at < stand.position {
            let (categories, skipped_types) = (categories.clone(), skipped_types.clone());
            let read = ReadLog { after: self.at, categories, skipped_types, ..ReadLog::default() };
            let page = self.store.read_final(&read, stand.position, PAGE).await?;
            for event in &page.events {
                self.apply(event, stand)?;
            }
            self.at = page.next.unwrap_or(stand.position);
        }
        Ok(())
    }

    fn apply(&mut self, raw: &Recorded<Payload>, stand: &Stand) -> Result<(), StoreError> {
        let position = raw.position.get();
        let of_stream = stand.letters.get(&(position, true));
        if of_stream == Some(&true) {
            return Ok(());
        }
        let decoded = guarded(|| -> Result<_, FollowError> {
            let event = self.contracts.decode::<V::Event>(raw).map_err(Box::new)?;
            let keys = V::keys(&event);
            Ok((event, keys))
        });
        let (event, keys) = match (decoded.and_then(|decoded| decoded), of_stream) {
            (Ok(decoded), _) => decoded,
            // It is parked because nobody knows its keys.
            (Err(_), Some(_)) => return Ok(()),
            (Err(error), None) => return Err(refused::<V>(raw, &error)),
        };
        if !keys.contains(self.key) {
            return Ok(());
        }
        match (of_stream, stand.letters.get(&(position, false))) {
            (None, Some(true)) => return Ok(()),
            (None, None) => {}
            _ => return Err(self.parked(position)),
        }
        let change = guarded(|| self.document.get_or_insert_default().apply(self.key, &event));
        if change.map_err(|error| refused::<V>(raw, &error))? == Change::Remove {
            self.document = None;
        }
        self.events += 1;
        Ok(())
    }

    /// Holds the checkpoint, folds the rest, and puts the document in place.
    async fn finish(
        mut self,
        before: &Stand,
        by: &By,
        conn: &mut PgConnection,
    ) -> Result<Option<KeyRebuilt>, StoreError> {
        let what = StoreError::on("put a document in place");
        let (store, name, key) = (self.store, V::NAME, self.key);
        let sql = &store.inner.sql;
        let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
        let locking = sql.lock_key.query().bind(name).bind(before.generation).bind(before.partition);
        let held = locking.execute(&mut *tx).await.map_err(&what)?.rows_affected() == 1;
        let stand = match held {
            true => self.look(&mut tx).await?.filter(|stand| stand.agrees(before, self.at)),
            false => None,
        };
        let Some(stand) = stand else { return Ok(None) };
        self.go_to(&stand).await?;
        // As the view's owner stores it: a document is folded from many events.
        let limits = PayloadLimits { bytes: 256 << 20, ..store.config().limits.payload };
        let text = self.document.as_ref().map(|document| to_json(format_args!("document {key:?}"), document, &limits));
        let text = text.transpose()?;
        let schema = store.inner.name.read_model(name)?;
        let putting = schema.instantiate_model(&store.inner.name, include_str!("../sql/put_document.sql"));
        let putting = putting.typed().bind(&**key).bind(text);
        let (was, is): (Option<String>, Option<String>) = putting.fetch_one(&mut *tx).await.map_err(&what)?;
        let rebuilt = KeyRebuilt {
            name: name.into(),
            key: (**key).to_owned(),
            position: stand.position,
            events: self.events,
            changed: was != is,
            before: was,
            after: is,
        };
        let KeyRebuilt { position, events, changed, .. } = &rebuilt;
        let details = serde_json::json!({ "key": &**key, "position": position, "events": events, "changed": changed });
        sql.record_action
            .query()
            .bind(name)
            .bind(stand.generation)
            .bind("rebuild key")
            .bind(&by.actor)
            .bind(&by.reason)
            .bind(details.to_string())
            .execute(&mut *tx)
            .await
            .map_err(&what)?;
        tx.commit().await.map_err(&what)?;
        Ok(Some(rebuilt))
    }
}

fn refused<V: View>(event: &Recorded<Payload>, error: &FollowError) -> StoreError {
    StoreError::Unfit(format!(
        "the code of {} cannot apply what the live view has applied, {} of {} at position {}: {}",
        V::NAME,
        event.event_type,
        event.stream,
        event.position,
        error.text()
    ))
}
