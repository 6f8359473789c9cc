//! The replay check: the whole log through this build's code, with nothing written.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;

use super::builder::{Builder, StartError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Aggregate, FailurePolicy, InvalidInput, Payload, Position, ReadLog, Recorded, StreamId, Version,
    error::StoreError,
    event::contract::Contracts,
    saga::Runtime,
    store::Annals,
    subscription::{FollowError, FollowerReplay, Model, REPLAY_BATCH, aside, guarded},
};

/// How far a replay check has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayProgress {
    /// Who is reading: `aggregate order`, each aggregate in turn, and then `views and projectors`, all at once.
    pub by: String,
    /// How many events it has read.
    pub events: u64,
    /// The log's end for this check. The log has at most as many events.
    pub up_to: Position,
}

/// What a replay check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Up to where the log was read: where it was final when the check began, or the event that failed.
    pub position: Position,
    /// How many events the log has up to there.
    pub events: u64,
    /// How many streams begin up to there.
    pub streams: u64,
    /// The aggregates that took part.
    pub aggregates: Vec<String>,
    /// The views and projectors that took part.
    pub followers: Vec<String>,
    /// Categories whose events nothing that is registered reads, each with how many there are up to there.
    pub unread: BTreeMap<String, u64>,
    /// The first event of the log that failed.
    pub failure: Option<ReplayFailure>,
}

/// An event that this build cannot read or apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayFailure {
    /// Whose code failed: `aggregate order`, `view spend`, `projector journal`.
    pub by: String,
    /// The event's stream.
    pub stream: String,
    /// Its version in the stream.
    pub version: Version,
    /// Its position.
    pub position: Position,
    /// Its stored type.
    pub event_type: String,
    /// Its stored schema version.
    pub schema_version: u16,
    /// Why, with all causes.
    pub error: String,
}

impl ReplayFailure {
    fn new(by: &str, event: &Recorded<Payload>, error: String) -> Self {
        Self {
            by: by.to_owned(),
            stream: event.stream.to_string(),
            version: event.version,
            position: event.position,
            event_type: event.event_type.to_string(),
            schema_version: event.schema_version,
            error,
        }
    }
}

/// An aggregate's streams, folded one after the other.
pub(super) trait Fold: Send {
    fn category(&self) -> &'static str;

    /// Applies the next event of a stream, or the first of the next stream.
    fn apply(&mut self, event: &Recorded<Payload>, contracts: &Contracts) -> Result<(), FollowError>;
}

/// Begins to fold the streams of one aggregate.
pub(super) type MakeFold = Box<dyn Fn() -> Box<dyn Fold> + Send + Sync>;

struct AggregateFold<A> {
    stream: Option<StreamId>,
    aggregate: A,
}

pub(super) fn fold<A: Aggregate>() -> Box<dyn Fold> {
    Box::new(AggregateFold { stream: None, aggregate: A::default() })
}

impl<A: Aggregate> Fold for AggregateFold<A> {
    fn category(&self) -> &'static str {
        A::TYPE
    }

    fn apply(&mut self, event: &Recorded<Payload>, contracts: &Contracts) -> Result<(), FollowError> {
        if self.stream.as_ref() != Some(&event.stream) {
            (self.stream, self.aggregate) = (Some(event.stream.clone()), guarded(A::default)?);
        }
        let event = guarded(|| contracts.decode::<A::Event>(event))?.map_err(Box::new)?;
        guarded(|| self.aggregate.apply(&event.event))
    }
}

impl Builder {
    /// Reads the whole log with this build, through every upcast, aggregate, view and projector, and writes nothing: run it
    /// before a deploy, against the store that the build is to work on. Nothing is started or set up, so other builds may run
    /// on the store meanwhile, of whatever versions. Events that were discarded for a read model are left out for it.
    ///
    /// `progress` is told after every page.
    ///
    /// Aggregates are read stream by stream, and then the log once in its order for all views and projectors, into schemas that
    /// only one transaction sees, which is rolled back, whatever becomes of this process. Code that panics, or takes longer than
    /// [`FailurePolicy::deadline`] for a batch, counts as failed. What a projector does beside that transaction, such as a call
    /// to somewhere else, it does here, too; and what it locks outside its schema, by a foreign key or by hand, stays locked until
    /// the end. No writer and no follower waits for the check otherwise; but it is one long transaction: Postgres cleans up
    /// behind it only, live followers become slower with its length, every version of every document takes room until the end,
    /// and whoever alters the store's tables waits. Check a large store on a copy. It takes a role with CREATE on the database. With [`Config::migrate`](crate::Config::migrate) false, connecting changes nothing, either.
    ///
    /// # Errors
    /// As [`Builder::start`]; [`StoreError::Unfit`] if a projector's tables or indexes cannot be created. An event that fails is
    /// no error: it is in [`Replayed::failure`].
    pub async fn replay_check(self, mut progress: impl FnMut(&ReplayProgress) + Send) -> Result<Replayed, StartError> {
        let Self { store, contracts, folds, followers, .. } = self.checked()?;
        let contracts = Arc::new(contracts);
        // Nothing of it runs.
        let runtime = Runtime::new(
            store.clone(),
            Uuid::nil(),
            vec![],
            crate::Follow::Nothing,
            None,
            None,
            CancellationToken::new(),
        );
        let models = followers.into_iter().map(|(_, define)| define(&store, &contracts, &runtime));
        let models: Vec<Model> = models.collect::<Result<_, InvalidInput>>()?;
        let models: Vec<Model> = models.into_iter().filter(Model::is_read_model).collect();
        let up_to = store.horizon().await?.safe;
        let mut replayed = Replayed {
            position: up_to,
            events: 0,
            streams: 0,
            aggregates: folds.iter().map(|make| make().category().to_owned()).collect(),
            followers: models.iter().map(|model| model.name.to_owned()).collect(),
            unread: BTreeMap::new(),
            failure: None,
        };
        for make in &folds {
            // The whole of each category is read: below a bound that few events reach, an index would be searched in vain.
            let bound = replayed.failure.as_ref().map_or(up_to, |failure| before(failure.position));
            let by = format!("aggregate {}", make().category());
            let mut tell = |events| progress(&ReplayProgress { by: by.clone(), events, up_to });
            if let Some(failure) = replay_aggregate(&store, &contracts, make, (up_to, bound), &by, &mut tell).await? {
                replayed.failure = Some(failure);
            }
        }
        if let Some(failure) = &replayed.failure {
            replayed.position = failure.position;
        }
        let mut tell = |events| progress(&ReplayProgress { by: "views and projectors".into(), events, up_to });
        replay_log(&store, &models, &mut replayed, &mut tell).await?;
        Ok(replayed)
    }
}

fn before(position: Position) -> Position {
    Position::new(position.get() - 1)
}

/// Folds every stream of one aggregate up to `up_to`, read up to `end`. Returns the event that failed and has the least position.
async fn replay_aggregate(
    store: &Annals,
    contracts: &Arc<Contracts>,
    make: &MakeFold,
    (end, mut up_to): (Position, Position),
    by: &str,
    tell: &mut (dyn FnMut(u64) + Send),
) -> Result<Option<ReplayFailure>, StoreError> {
    let (mut fold, mut failure, mut read) = (make(), None, 0);
    let category = fold.category();
    let deadline = FailurePolicy::PARK.deadline;
    let mut page = store.read_category(category, None, end).await?;
    loop {
        let events = Arc::new(page.events);
        read += events.len() as u64;
        let folding = async {
            let mut next = 0;
            while next < events.len() {
                let at = Arc::new(AtomicUsize::new(next));
                let work = {
                    let (events, contracts, at) = (events.clone(), contracts.clone(), at.clone());
                    move || {
                        let ended = fold_page(&mut *fold, &events, &contracts, &at, up_to);
                        (fold, ended)
                    }
                };
                let (failed, error) = match aside(deadline, work).await? {
                    Some((kept, ended)) => {
                        fold = kept;
                        let Err(failed) = ended else { break };
                        failed
                    }
                    None => {
                        fold = make();
                        (at.load(Ordering::Relaxed), FollowError::Hung(deadline))
                    }
                };
                let event = &events[failed];
                failure = Some(ReplayFailure::new(by, event, error.text()));
                // Other streams may fail earlier in the log.
                (up_to, next) = (before(event.position), failed + 1);
            }
            Ok::<_, StoreError>((fold, up_to))
        };
        let reading = async {
            match &page.next {
                Some(next) => store.read_category(category, Some(next.clone()), end).await.map(Some),
                None => Ok(None),
            }
        };
        let (folded, next) = tokio::join!(folding, reading);
        (fold, up_to) = folded?;
        tell(read);
        match next? {
            Some(next) => page = next,
            None => return Ok(failure),
        }
    }
}

/// Folds the events from `at` on, but those above `up_to`. `at` says where it is. The error comes with the event.
fn fold_page(
    fold: &mut dyn Fold,
    events: &[Recorded<Payload>],
    contracts: &Contracts,
    at: &AtomicUsize,
    up_to: Position,
) -> Result<(), (usize, FollowError)> {
    for (nth, event) in events.iter().enumerate().skip(at.load(Ordering::Relaxed)) {
        at.store(nth, Ordering::Relaxed);
        if event.position <= up_to {
            fold.apply(event, contracts).map_err(|error| (nth, error))?;
        }
    }
    Ok(())
}

/// Reads the log in its order, counts what there is, and gives it to the views and projectors; up to `replayed.position`, and
/// before the event of it that failed already.
async fn replay_log(
    store: &Annals,
    models: &[Model],
    replayed: &mut Replayed,
    tell: &mut (dyn FnMut(u64) + Send),
) -> Result<(), StoreError> {
    let up_to = replayed.position;
    let mut followers = match models {
        [] => None,
        models => Some(FollowerReplay::begin(store, models).await?),
    };
    let read = |after| async move {
        let read = ReadLog { after, ..ReadLog::default() };
        store.read_final(&read, up_to, REPLAY_BATCH).await
    };
    let mut page = read(Position::START).await?;
    loop {
        let mut events: Vec<_> = page.events.into_iter().map(Arc::new).collect();
        let known = replayed.failure.as_ref().map(|failure| failure.position);
        let given: Vec<_> = events.iter().filter(|event| Some(event.position) != known).cloned().collect();
        let applying = async {
            match &mut followers {
                Some(followers) => followers.apply(&given).await,
                None => Ok(None),
            }
        };
        let reading = async {
            match page.next {
                Some(after) => read(after).await.map(Some),
                None => Ok(None),
            }
        };
        let (failed, next) = tokio::join!(applying, reading);
        let failed = failed?;
        if let Some((by, event, error)) = &failed {
            replayed.failure = Some(ReplayFailure::new(by, event, error.clone()));
            replayed.position = event.position;
            events.retain(|other| other.position <= event.position);
        }
        for event in &events {
            replayed.count(event);
        }
        tell(replayed.events);
        match next? {
            Some(next) if failed.is_none() => page = next,
            _ => break,
        }
    }
    if let Some(followers) = followers {
        followers.end().await;
    }
    Ok(())
}

impl Replayed {
    fn count(&mut self, event: &Recorded<Payload>) {
        self.events += 1;
        self.streams += u64::from(event.version == Version::new(1));
        let category = event.stream.category();
        if self.aggregates.iter().any(|aggregate| aggregate == category) {
            return;
        }
        match self.unread.get_mut(category) {
            Some(events) => *events += 1,
            None => {
                self.unread.insert(category.to_owned(), 1);
            }
        }
    }
}
