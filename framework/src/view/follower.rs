//! A view at work: load the documents of the batch that are not in memory, fold, store them with the checkpoint. One round
//! trip a batch, or two.

mod fold;
mod memory;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::BoxFuture;
use sqlx::{Connection, PgConnection, Row};

use self::{
    fold::{Decoded, Documents, fold},
    memory::{Held, Kept},
};
use crate::{
    Begin, BoxError, Change, Id, Payload, PayloadLimits, Recorded, View,
    error::StoreError,
    event::{contract::Contracts, encode::to_json},
    sql::{Statement, StoreName},
    store::Annals,
    subscription::{Applied, Batch, Checkpoint, FollowError, Follower, Letters, Model, Unit, Work, guarded},
};

/// The longest key: an entry of an index of Postgres takes 2,704 bytes.
const KEY_BYTES: usize = 2_000;

/// Documents that one statement stores.
const STORED_AT_ONCE: usize = 10_000;

/// The statements of one view, for its schema.
#[derive(Debug, Clone)]
pub(crate) struct ViewSql {
    load: Statement,
    apply: Statement,
    apply_and_park: Statement,
    pub(crate) get: Statement,
    pub(crate) list: Statement,
    pub(crate) count: Statement,
}

impl ViewSql {
    /// The statements for the live documents.
    pub(crate) fn new<V: View>(store: &StoreName) -> Result<Self, crate::InvalidInput> {
        Ok(Self::within(store, &store.read_model(V::NAME)?))
    }

    /// The statements for the documents in `schema`.
    fn within(store: &StoreName, schema: &StoreName) -> Self {
        let text = |text| schema.instantiate_model(store, text);
        Self {
            load: text(include_str!("../sql/load_documents.sql")),
            apply: text(concat!(include_str!("../sql/apply_view.sql"), include_str!("../sql/apply_view_end.sql"))),
            apply_and_park: text(concat!(
                include_str!("../sql/apply_view.sql"),
                include_str!("../sql/apply_view_park.sql")
            )),
            get: text(include_str!("../sql/get_document.sql")),
            list: text(include_str!("../sql/list_documents.sql")),
            count: text(include_str!("../sql/count_documents.sql")),
        }
    }
}

/// What there is to know of `V` to set it up and to run it.
pub(crate) fn model<V: View>(store: &Annals, contracts: &Arc<Contracts>) -> Result<Model, crate::InvalidInput> {
    let live = store.inner.name.read_model(V::NAME)?;
    let (store, contracts) = (store.clone(), contracts.clone());
    Ok(Model {
        name: V::NAME,
        kind: "view",
        version: V::VERSION,
        older: vec![],
        partitions: V::PARTITIONS,
        policy: V::FAILURES,
        categories: contracts.categories_of::<V::Event>(),
        skips: V::SKIPS,
        definition: format!("view {} {}", std::any::type_name::<V>(), V::INDEXES),
        live,
        begin: Begin::Start,
        tables: include_str!("../sql/create_documents.sql"),
        indexes: V::INDEXES,
        follower: Box::new(move |unit| Arc::new(ViewFollower::<V>::new(&store, contracts.clone(), unit))),
    })
}

/// The follower of a view.
struct ViewFollower<V> {
    sql: ViewSql,
    contracts: Arc<Contracts>,
    limits: PayloadLimits,
    drop_key: Statement,
    add_key: Statement,
    store_first: Statement,
    store_more: Statement,
    kept: Mutex<Kept<V>>,
    held: Mutex<Option<Held<V>>>,
}

impl<V: View> ViewFollower<V> {
    fn new(store: &Annals, contracts: Arc<Contracts>, unit: &Unit) -> Self {
        let sql = ViewSql::within(&store.inner.name, &unit.schema);
        // A document is folded from many events, so the limit of one payload does not bound it.
        let limits = PayloadLimits { bytes: 256 << 20, ..store.config().limits.payload };
        let text = |text| unit.schema.instantiate_model(&store.inner.name, text);
        Self {
            sql,
            contracts,
            limits,
            drop_key: text(include_str!("../sql/drop_documents_key.sql")),
            add_key: text(include_str!("../sql/add_documents_key.sql")),
            store_first: text(include_str!("../sql/store_first_documents.sql")),
            store_more: text(include_str!("../sql/store_documents.sql")),
            kept: Mutex::new(Kept::nothing()),
            held: Mutex::new(None),
        }
    }

    /// Takes out what is kept, if it is of this checkpoint: a batch that fails or is fenced leaves nothing behind.
    fn take_kept(&self, from: Checkpoint) -> Kept<V> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = std::mem::replace(&mut *kept, Kept::nothing());
        if kept.at == Some(from) { kept } else { Kept::nothing() }
    }

    fn keep(&self, kept: Kept<V>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// Decodes an event and asks for its keys: those of this partition, each once, in order.
    fn decode(&self, unit: &Unit, raw: &Recorded<Payload>) -> Result<(Recorded<V::Event>, Vec<Id>), FollowError> {
        let event = self.contracts.decode::<V::Event>(raw).map_err(Box::new)?;
        let mut keys = guarded(|| V::keys(&event))?;
        keys.sort();
        keys.dedup();
        if let Some(error) = keys.iter().find_map(|key| refuse_key(key)) {
            return Err(FollowError::Handler(format!("{}: {error}", V::NAME).into()));
        }
        keys.retain(|key| unit.has(key));
        Ok((event, keys))
    }

    /// Loads documents; one that does not decode is its key's failure.
    async fn load(
        &self,
        keys: &[&str],
        conn: &mut PgConnection,
    ) -> Result<Vec<(String, Result<V, FollowError>)>, FollowError> {
        let rows = self
            .sql
            .load
            .query()
            .bind(keys)
            .fetch_all(conn)
            .await
            .map_err(|error| FollowError::Store(StoreError::on("load documents")(error)))?;
        let decode = |row: sqlx::postgres::PgRow| {
            let key: String = row.get(0);
            // From the text, as `App::get` reads it: by way of a `Value`, whole numbers beyond 64 bits are lost.
            let document = serde_json::from_str(row.get(1)).map_err(|error| {
                let text = format!("the document {key:?} of {} does not decode: {error}", V::NAME);
                FollowError::Handler(text.into())
            });
            (key, document)
        };
        Ok(rows.into_iter().map(decode).collect())
    }

    async fn work(&self, batch: &Batch, conn: &mut PgConnection) -> Result<Applied, FollowError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if batch.held || batch.hold {
            return self.hold(batch, held, conn).await;
        }
        let mut kept = self.take_kept(batch.from);
        let mut letters = Letters::new(batch);
        let (mut events, mut keys) = (Vec::with_capacity(batch.events.len()), Vec::with_capacity(batch.events.len()));
        for raw in &batch.events {
            batch.progress.decoding(raw.position);
            let decoded = match letters.poison(raw.position, raw.stream.as_str(), true) {
                Some(poison) => Err(FollowError::Known(poison.told.text.clone())),
                None => self.decode(&batch.unit, raw),
            };
            let (event, own) = decoded.map_or_else(|error| (Err(error), vec![]), |(event, keys)| (Ok(event), keys));
            events.push(event);
            keys.push(own);
        }
        batch.progress.end();
        let keys = Arc::new(keys);
        if !batch.parked.is_empty() {
            let streams = if batch.parked.may_have_streams() { &batch.events[..] } else { &[] };
            let streams = streams.iter().map(|raw| raw.stream.as_str());
            letters.find(keys.iter().flatten().map(|key| &**key).chain(streams).collect(), conn).await?;
        }
        let mut documents = self.documents(&letters, batch, &keys, &mut kept, conn).await?;
        batch.progress.folding(&keys);
        let bad = fold(batch, &mut events, &keys, &mut documents, &mut letters)?;
        batch.progress.end();
        self.restore(batch, &events, &keys, bad, &mut documents, conn).await?;
        self.store(batch, documents, letters, kept, conn).await
    }

    /// Folds a batch of a shadow into what it holds: in one pass where nothing is stored yet, which there is nothing to load
    /// of. Any failure ends it: what was held is given again without holding.
    async fn hold(
        &self,
        batch: &Batch,
        held: Option<Held<V>>,
        conn: &mut PgConnection,
    ) -> Result<Applied, FollowError> {
        let held = held.filter(|held| batch.held && held.from == batch.from && held.to == batch.after);
        if batch.held && held.is_none() {
            return Ok(Applied::Fenced);
        }
        let mut held = held.unwrap_or_else(|| Held::new(batch.from));
        let mut letters = Letters::new(batch);
        let (mut waiting, mut last) = (vec![], vec![]);
        let unheld = |error: FollowError| Ok(Applied::Unheld(error.to_string()));
        for raw in &batch.events {
            if letters.discard(raw.position, raw.stream.as_str(), true) {
                continue;
            }
            batch.progress.decoding(raw.position);
            let (event, keys) = match self.decode(&batch.unit, raw) {
                Ok(decoded) => decoded,
                Err(error) => return unheld(error),
            };
            if !batch.begins_shadow() {
                waiting.push((event, keys));
                continue;
            }
            if let Err(error) = held.fold(&event, &keys, &mut letters) {
                return unheld(error);
            }
            last = keys;
        }
        batch.progress.end();
        let keys = || waiting.iter().flat_map(|(_, keys)| keys).map(|key| &**key);
        if !waiting.is_empty() && !batch.parked.is_empty() {
            let streams = batch.events.iter().map(|raw| raw.stream.as_str());
            letters.find(keys().chain(streams).collect(), conn).await?;
            if letters.finds_any() {
                return Ok(Applied::Unheld("some of its keys are parked".into()));
            }
        }
        let mut missing: Vec<&str> = keys().filter(|key| !held.documents.contains_key(*key)).collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            for (key, document) in self.load(&missing, conn).await? {
                match document {
                    Ok(document) => held.documents.insert(key, Some(document)),
                    Err(error) => return unheld(error),
                };
            }
        }
        for (event, keys) in waiting {
            batch.progress.decoding(event.position);
            if let Err(error) = held.fold(&event, &keys, &mut letters) {
                return unheld(error);
            }
            last = keys;
        }
        batch.progress.end();
        held.grow(batch.to, letters.counts(), last.last(), &self.limits);
        if batch.hold && !held.is_full() {
            *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
            return Ok(Applied::Held);
        }
        self.store_held(batch, held, conn).await
    }

    /// The documents that the batch may change: from memory, or else from the database.
    async fn documents<'k>(
        &self,
        letters: &Letters<'_>,
        batch: &Batch,
        keys: &'k [Vec<Id>],
        kept: &mut Kept<V>,
        conn: &mut PgConnection,
    ) -> Result<Documents<'k, V>, FollowError> {
        let mut documents = Documents { places: HashMap::default(), list: vec![] };
        let mut missing = vec![];
        // Where nothing is stored yet there is nothing to load.
        let is_empty = batch.begins_shadow();
        for key in keys.iter().flatten() {
            let other = matches!(&batch.work, Work::Retry { key: own, by_stream: false } if **own != **key);
            if other || letters.is_blocked(key, false) {
                continue;
            }
            documents.places.entry(key).or_insert_with(|| {
                let known = kept.documents.remove(&**key).map(|(_, (document, _))| document);
                if known.is_none() && !is_empty {
                    missing.push(&**key);
                }
                documents.list.push((key, Ok(known)));
                documents.list.len() - 1
            });
        }
        if !missing.is_empty() {
            for (key, document) in self.load(&missing, conn).await? {
                documents.list[documents.places[&*key]].1 = document.map(Some);
            }
        }
        Ok(documents)
    }

    /// Makes the documents good again that had changed when their fold failed: as they were, with the events before that one.
    async fn restore(
        &self,
        batch: &Batch,
        events: &[Decoded<V::Event>],
        keys: &[Vec<Id>],
        bad: Vec<(Id, usize)>,
        documents: &mut Documents<'_, V>,
        conn: &mut PgConnection,
    ) -> Result<(), FollowError> {
        if bad.is_empty() {
            return Ok(());
        }
        let texts: Vec<&str> = bad.iter().map(|(key, _)| &**key).collect();
        let mut loaded: HashMap<String, Result<V, FollowError>> = self.load(&texts, conn).await?.into_iter().collect();
        for (key, end) in bad {
            let is_its = |nth: &usize| {
                let position = batch.events[*nth].position.get();
                events[*nth].is_ok()
                    && keys[*nth].binary_search(&key).is_ok()
                    && !batch.discards.contains(&(position, (*key).to_owned(), false))
            };
            let before = (0..end).filter(is_its);
            let mut document = loaded.remove(&*key).transpose()?;
            for event in before.filter_map(|nth| events[nth].as_ref().ok()) {
                if document.get_or_insert_default().apply(&key, event) == Change::Remove {
                    document = None;
                }
            }
            documents.put(&key, document);
        }
        Ok(())
    }

    async fn store(
        &self,
        batch: &Batch,
        mut documents: Documents<'_, V>,
        mut letters: Letters<'_>,
        mut kept: Kept<V>,
        conn: &mut PgConnection,
    ) -> Result<Applied, FollowError> {
        let in_callers = conn.is_in_transaction();
        // In the order of the index.
        documents.list.sort_unstable_by_key(|(key, _)| *key);
        let (mut stored, mut texts, mut removed) = (vec![], vec![], vec![]);
        for (key, document) in &documents.list {
            match document {
                Ok(Some(document)) => {
                    let text = to_json(format_args!("document {key:?}"), document, &self.limits);
                    texts.push(text.map_err(|error| FollowError::Handler(BoxError::from(error)))?);
                    stored.push(*key);
                }
                Ok(None) => removed.push(*key),
                Err(_) => {}
            }
        }
        letters.judge()?;
        let moved = if batch.work == Work::Follow {
            self.send(batch, letters.counts(), (&stored, &texts, &removed), Some(&letters), conn).await?
        } else {
            let what = |error| FollowError::Store(StoreError::on("store documents")(error));
            let mut tx = batch.sql.transaction(conn).await.map_err(what)?;
            letters.begin(&mut tx).await?;
            let moved = self.send(batch, letters.counts(), (&stored, &texts, &removed), None, &mut tx).await?;
            if moved {
                letters.store(&mut tx).await?;
                tx.commit().await.map_err(what)?;
            }
            moved
        };
        if !moved {
            return Ok(Applied::Fenced);
        }
        let stored = documents.list.into_iter().filter_map(|(key, document)| Some((key, document.ok()??)));
        for ((key, document), text) in stored.zip(&texts) {
            kept.documents.insert(key.to_owned(), (document, text.len() as u64));
        }
        // Where the caller commits, it may fail yet.
        if !in_callers {
            self.keep(Kept { at: Some(batch.committed()), ..kept });
        }
        Ok(Applied::Committed(letters.take_rows()))
    }

    /// Stores everything that was held, in one transaction with the checkpoint.
    async fn store_held(&self, batch: &Batch, held: Held<V>, conn: &mut PgConnection) -> Result<Applied, FollowError> {
        let what = |error| FollowError::Store(StoreError::on("store documents")(error));
        let mut documents: Vec<(String, Option<V>)> = held.documents.into_iter().collect();
        // In the order of the index.
        documents.sort_unstable_by(|(key, _), (other, _)| key.cmp(other));
        let mut tx = batch.sql.transaction(conn).await.map_err(what)?;
        let letters = Letters::new(batch);
        letters.begin(&mut tx).await?;
        let removed: Vec<&str> =
            documents.iter().filter(|(_, document)| document.is_none()).map(|(key, _)| key.as_str()).collect();
        if !self.send(batch, held.counts, (&[], &[], &removed), None, &mut tx).await? {
            return Ok(Applied::Fenced);
        }
        // The table is this partition's alone, and nobody reads it yet.
        let is_first = batch.begins_shadow() && batch.unit.partitions == 1;
        if is_first {
            sqlx::raw_sql(self.drop_key.text()).execute(&mut *tx).await.map_err(what)?;
        }
        for some in documents.chunks(STORED_AT_ONCE) {
            let (mut keys, mut texts) = (vec![], vec![]);
            for (key, document) in some {
                let Some(document) = document else { continue };
                let text = to_json(format_args!("document {key:?}"), document, &self.limits);
                texts.push(text.map_err(|error| FollowError::Handler(BoxError::from(error)))?);
                keys.push(key.as_str());
            }
            let storing = if batch.begins_shadow() { &self.store_first } else { &self.store_more };
            let storing = storing.query().bind(keys).bind(texts);
            storing.execute(&mut *tx).await.map_err(what)?;
        }
        if is_first {
            sqlx::raw_sql(self.add_key.text()).execute(&mut *tx).await.map_err(what)?;
        }
        tx.commit().await.map_err(what)?;
        Ok(Applied::Committed(vec![]))
    }

    /// Stores documents and moves the checkpoint, and parks what `letters` hold, in one statement. Returns whether the
    /// checkpoint stood where it must; else nothing is changed.
    async fn send(
        &self,
        batch: &Batch,
        counts: [i64; 4],
        (stored, texts, removed): (&[&str], &[String], &[&str]),
        letters: Option<&Letters<'_>>,
        conn: &mut PgConnection,
    ) -> Result<bool, FollowError> {
        let (unit, letters) = (&batch.unit, letters.filter(|letters| !letters.is_empty()));
        let sql = if letters.is_some() { &self.sql.apply_and_park } else { &self.sql.apply };
        let sending = sql
            .query()
            .bind(unit.name)
            .bind(unit.generation)
            .bind(unit.partition)
            .bind(batch.from.fence)
            .bind(batch.from.position.get())
            .bind(batch.to.get())
            .bind(counts)
            .bind(stored)
            .bind(texts)
            .bind(removed);
        let sending = match letters {
            Some(letters) => letters.bind(sending),
            None => sending,
        };
        let row = sending.fetch_one(conn).await;
        row.map(|row| row.get(0)).map_err(|error| FollowError::Store(StoreError::on("store documents")(error)))
    }
}

impl<V: View> Follower for ViewFollower<V> {
    fn apply<'a>(
        &'a self,
        batch: &'a Batch,
        conn: &'a mut PgConnection,
    ) -> BoxFuture<'a, Result<Applied, FollowError>> {
        Box::pin(self.work(batch, conn))
    }

    fn holds(&self) -> bool {
        true
    }
}

/// Why a key cannot be one, if it cannot.
pub(super) fn refuse_key(key: &str) -> Option<String> {
    if key.contains('\0') {
        return Some(format!("a key holds a NUL character: {key:?}"));
    }
    let (length, limit) = (key.len(), KEY_BYTES);
    (length > limit).then(|| {
        let start: String = key.chars().take(80).collect();
        format!("the key {start:?}… has {length} bytes, the limit is {limit}")
    })
}
