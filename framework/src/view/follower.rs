//! A view at work: load the batch's documents, fold in memory, store them with the checkpoint. Two round trips a batch.

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    sync::Arc,
};

use sqlx::{PgConnection, Row, SqlStr};

use crate::{
    BoxError, Change, Id, PayloadLimits, Recorded, View,
    error::StoreError,
    event::{contract::Contracts, encode::to_json},
    sql::StoreName,
    store::Annals,
    subscription::{Applied, Batch, FollowError, Follower, ReadModel},
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

/// The follower of a view.
pub(crate) struct ViewFollower<V> {
    sql: ViewSql,
    contracts: Arc<Contracts>,
    categories: Vec<String>,
    limits: PayloadLimits,
    view: PhantomData<fn() -> V>,
}

impl<V: View> ViewFollower<V> {
    pub(crate) fn new(store: &Annals, contracts: Arc<Contracts>) -> Result<Self, crate::InvalidInput> {
        let categories = contracts.categories_of::<V::Event>();
        let sql = ViewSql::new::<V>(&store.inner.name)?;
        // A document is folded from many events, so the limit of one payload does not bound it.
        let limits = PayloadLimits { bytes: 256 << 20, ..store.config().limits.payload };
        Ok(Self { sql, contracts, categories, limits, view: PhantomData })
    }

    async fn load(&self, keys: &[&str], conn: &mut PgConnection) -> Result<BTreeMap<String, V>, FollowError> {
        let rows = sqlx::query(self.sql.load.clone())
            .bind(keys)
            .fetch_all(conn)
            .await
            .map_err(|error| FollowError::Store(StoreError::on("load documents")(error)))?;
        let mut documents = BTreeMap::new();
        for row in rows {
            let key: String = row.get(0);
            // From the text, as `App::get` reads it: by way of a `Value`, whole numbers beyond 64 bits are lost.
            let document = serde_json::from_str(row.get(1)).map_err(|error| {
                FollowError::Handler(format!("the document {key:?} of {} does not decode: {error}", V::NAME).into())
            })?;
            documents.insert(key, document);
        }
        Ok(documents)
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
        let mut work: Vec<(Recorded<V::Event>, Vec<Id>)> = Vec::with_capacity(batch.events.len());
        for raw in batch.events {
            let event = self.contracts.decode::<V::Event>(raw).map_err(Box::new)?;
            let mut keys = V::keys(&event);
            keys.sort();
            keys.dedup();
            work.push((event, keys));
        }
        let keys: BTreeSet<&str> = work.iter().flat_map(|(_, keys)| keys).map(|key| &**key).collect();
        if let Some(error) = keys.iter().find_map(|key| refuse_key(key)) {
            return Err(FollowError::Handler(format!("{}: {error}", V::NAME).into()));
        }
        let keys: Vec<&str> = keys.into_iter().collect();
        let mut documents = if keys.is_empty() { BTreeMap::new() } else { self.load(&keys, conn).await? };
        let mut removed: BTreeSet<&str> = BTreeSet::new();
        for (event, keys) in &work {
            for key in keys {
                let document = documents.entry(key.to_string()).or_default();
                if document.apply(key, event) == Change::Remove {
                    documents.remove(&**key);
                    removed.insert(key);
                }
            }
        }
        let mut texts = Vec::with_capacity(documents.len());
        for (key, document) in &documents {
            let text = to_json(&format!("document {key:?}"), document, &self.limits);
            texts.push(text.map_err(|error| FollowError::Handler(BoxError::from(error)))?);
            removed.remove(&**key);
        }
        let moved: bool = sqlx::query_scalar(self.sql.apply.clone())
            .bind(V::NAME)
            .bind(batch.from.generation)
            .bind(batch.from.position.get())
            .bind(batch.to.get())
            .bind(documents.keys().collect::<Vec<_>>())
            .bind(&texts)
            .bind(removed.into_iter().collect::<Vec<_>>())
            .fetch_one(conn)
            .await
            .map_err(|error| FollowError::Store(StoreError::on("store documents")(error)))?;
        Ok(if moved { Applied::Committed } else { Applied::Fenced })
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
