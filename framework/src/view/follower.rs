//! A view at work: load the documents of the batch that are not in memory, fold, store them with the checkpoint. One round
//! trip a batch, or two.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use quick_cache::{Weighter, unsync::Cache};
use sqlx::{PgConnection, Row, SqlStr, postgres::PgRow};

use crate::{
    BoxError, Change, Id, PayloadLimits, Recorded, View,
    error::StoreError,
    event::{contract::Contracts, encode::to_json},
    sql::StoreName,
    store::Annals,
    subscription::{Applied, Batch, Checkpoint, FollowError, Follower, ReadModel},
};

/// The longest key: an entry of an index of Postgres takes 2,704 bytes.
const KEY_BYTES: usize = 2_000;

/// The statements of one view, for its schema.
#[derive(Debug, Clone)]
pub(crate) struct ViewSql {
    load: SqlStr,
    apply: SqlStr,
    pub(crate) get: SqlStr,
    pub(crate) list: SqlStr,
    pub(crate) count: SqlStr,
}

impl ViewSql {
    pub(crate) fn new<V: View>(store: &StoreName) -> Result<Self, crate::InvalidInput> {
        let schema = store.read_model(V::NAME)?;
        let text = |text| schema.instantiate_model(store, text);
        Ok(Self {
            load: text(include_str!("../sql/load_documents.sql")),
            apply: text(include_str!("../sql/apply_view.sql")),
            get: text(include_str!("../sql/get_document.sql")),
            list: text(include_str!("../sql/list_documents.sql")),
            count: text(include_str!("../sql/count_documents.sql")),
        })
    }
}

/// What creates the schema of `V`.
pub(crate) fn read_model<V: View>(store: &StoreName, contracts: &Contracts) -> Result<ReadModel, crate::InvalidInput> {
    let schema = store.read_model(V::NAME)?;
    let tables = [include_str!("../sql/create_read_model.sql"), include_str!("../sql/create_documents.sql")];
    let mut tables: Vec<_> = tables.into_iter().map(|text| schema.instantiate_model(store, text)).collect();
    tables.push(schema.verbatim(V::INDEXES));
    Ok(ReadModel {
        name: V::NAME,
        kind: "view",
        version: V::VERSION,
        categories: contracts.categories_of::<V::Event>(),
        schema,
        tables,
    })
}

/// What is kept of a view in memory, in bytes of its documents' JSON.
const KEPT_BYTES: u64 = 4 << 20;

/// The follower of a view.
pub(crate) struct ViewFollower<V> {
    sql: ViewSql,
    contracts: Arc<Contracts>,
    categories: Vec<String>,
    limits: PayloadLimits,
    kept: Mutex<Kept<V>>,
}

/// Documents that were stored lately, as they are at the checkpoint `at`: what stands there need not be loaded.
struct Kept<V> {
    at: Option<Checkpoint>,
    documents: Cache<String, (V, u64), Size>,
}

#[derive(Clone)]
struct Size;

impl<V> Weighter<String, (V, u64)> for Size {
    fn weight(&self, key: &String, (_, bytes): &(V, u64)) -> u64 {
        bytes + key.len() as u64 + 100
    }
}

impl<V> Kept<V> {
    fn nothing() -> Self {
        Self { at: None, documents: Cache::with_weighter(1_000, KEPT_BYTES, Size) }
    }
}

impl<V: View> ViewFollower<V> {
    pub(crate) fn new(store: &Annals, contracts: Arc<Contracts>) -> Result<Self, crate::InvalidInput> {
        let categories = contracts.categories_of::<V::Event>();
        let sql = ViewSql::new::<V>(&store.inner.name)?;
        // A document is folded from many events, so the limit of one payload does not bound it.
        let limits = PayloadLimits { bytes: 256 << 20, ..store.config().limits.payload };
        Ok(Self { sql, contracts, categories, limits, kept: Mutex::new(Kept::nothing()) })
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

    async fn load(&self, keys: &[&str], conn: &mut PgConnection) -> Result<Vec<(String, V)>, FollowError> {
        let rows = sqlx::query(self.sql.load.clone())
            .bind(keys)
            .fetch_all(conn)
            .await
            .map_err(|error| FollowError::Store(StoreError::on("load documents")(error)))?;
        let decode = |row: PgRow| {
            let key: String = row.get(0);
            // From the text, as `App::get` reads it: by way of a `Value`, whole numbers beyond 64 bits are lost.
            match serde_json::from_str(row.get(1)) {
                Ok(document) => Ok((key, document)),
                Err(error) => {
                    let text = format!("the document {key:?} of {} does not decode: {error}", V::NAME);
                    Err(FollowError::Handler(text.into()))
                }
            }
        };
        rows.into_iter().map(decode).collect()
    }
}

impl<V: View> Follower for ViewFollower<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    fn categories(&self) -> &[String] {
        &self.categories
    }

    async fn apply(&self, batch: Batch<'_>, conn: &mut PgConnection) -> Result<Applied, FollowError> {
        let mut kept = self.take_kept(batch.from);
        let mut work: Vec<(Recorded<V::Event>, Vec<Id>)> = Vec::with_capacity(batch.events.len());
        for raw in batch.events {
            let event = self.contracts.decode::<V::Event>(raw).map_err(Box::new)?;
            let mut keys = V::keys(&event);
            keys.sort();
            keys.dedup();
            if let Some(error) = keys.iter().find_map(|key| refuse_key(key)) {
                return Err(FollowError::Handler(format!("{}: {error}", V::NAME).into()));
            }
            work.push((event, keys));
        }
        // The documents of the batch: each with its place in `documents`.
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut documents: Vec<(&str, Option<V>)> = vec![];
        for key in work.iter().flat_map(|(_, keys)| keys) {
            places.entry(key).or_insert_with(|| {
                documents.push((key, kept.documents.remove(&**key).map(|(_, (document, _))| document)));
                documents.len() - 1
            });
        }
        let missing: Vec<&str> =
            documents.iter().filter(|(_, document)| document.is_none()).map(|(key, _)| *key).collect();
        if !missing.is_empty() {
            for (key, document) in self.load(&missing, conn).await? {
                documents[places[&*key]].1 = Some(document);
            }
        }
        for (event, keys) in &work {
            for key in keys {
                let document = &mut documents[places[&**key]].1;
                if document.get_or_insert_default().apply(key, event) == Change::Remove {
                    *document = None;
                }
            }
        }
        // In the order of the index.
        documents.sort_unstable_by_key(|(key, _)| *key);
        let (mut stored, mut texts, mut removed) = (vec![], vec![], vec![]);
        for (key, document) in &documents {
            let Some(document) = document else {
                removed.push(*key);
                continue;
            };
            let text = to_json(&format!("document {key:?}"), document, &self.limits);
            texts.push(text.map_err(|error| FollowError::Handler(BoxError::from(error)))?);
            stored.push(*key);
        }
        let moved: bool = sqlx::query_scalar(self.sql.apply.clone())
            .bind(V::NAME)
            .bind(batch.from.generation)
            .bind(batch.from.position.get())
            .bind(batch.to.get())
            .bind(stored)
            .bind(&texts)
            .bind(removed)
            .fetch_one(conn)
            .await
            .map_err(|error| FollowError::Store(StoreError::on("store documents")(error)))?;
        if !moved {
            return Ok(Applied::Fenced);
        }
        let stored = documents.into_iter().filter_map(|(key, document)| Some((key, document?)));
        for ((key, document), text) in stored.zip(&texts) {
            kept.documents.insert(key.to_owned(), (document, text.len() as u64));
        }
        self.keep(Kept { at: Some(Checkpoint { position: batch.to, ..batch.from }), ..kept });
        Ok(Applied::Committed)
    }
}

/// Why a key cannot be one, if it cannot.
fn refuse_key(key: &str) -> Option<String> {
    if key.contains('\0') {
        return Some(format!("a key holds a NUL character: {key:?}"));
    }
    let start: String = key.chars().take(80).collect();
    let (length, limit) = (key.len(), KEY_BYTES);
    (length > limit).then(|| format!("the key {start:?}… has {length} bytes, the limit is {limit}"))
}
