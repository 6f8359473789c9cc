//! The SQL of the framework: one statement a file, instantiated once a store.

use sqlx::{
    AssertSqlSafe, Postgres, SqlSafeStr, SqlStr,
    postgres::{PgArguments, PgRow},
    query::{Query, QueryAs, QueryScalar},
};

use crate::error::InvalidInput;

/// A statement of the framework, and how it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    text: SqlStr,
    /// Whether the server keeps it by a name, for the connection's next use of it. Behind a pooler in transaction mode the
    /// next use is on another connection, where the name is somebody else's.
    named: bool,
}

impl Statement {
    /// `text` as the store of this name sends it.
    pub(crate) fn of(store: &StoreName, text: String) -> Self {
        Self { text: AssertSqlSafe(text).into_sql_str(), named: store.named }
    }

    /// For the simple protocol.
    pub(crate) fn text(&self) -> SqlStr {
        self.text.clone()
    }

    pub(crate) fn query<'q>(&self) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(self.text()).persistent(self.named)
    }

    /// For the first column.
    pub(crate) fn scalar<'q, T>(&self) -> QueryScalar<'q, Postgres, T, PgArguments>
    where
        (T,): for<'r> sqlx::FromRow<'r, PgRow>,
    {
        sqlx::query_scalar(self.text()).persistent(self.named)
    }

    /// For rows as tuples.
    pub(crate) fn typed<'q, T>(&self) -> QueryAs<'q, Postgres, T, PgArguments>
    where
        T: for<'r> sqlx::FromRow<'r, PgRow>,
    {
        sqlx::query_as(self.text()).persistent(self.named)
    }
}

/// The validated name of a store's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreName {
    name: String,
    /// Whether its statements may have names ([`Statement`]).
    named: bool,
}

impl StoreName {
    pub(crate) fn new(name: &str) -> Result<Self, InvalidInput> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.starts_with("pg_");
        let taken = matches!(name, "public" | "information_schema" | "plpgsql");
        if starts_well && !taken && name.len() <= 30 && name.chars().all(letters) {
            return Ok(Self::stored(name.into()));
        }
        Err(InvalidInput::Other(format!(
            "store name {name:?} is refused: it takes 1 to 30 of a-z, 0-9 and _, begins with a letter, not with pg_, \
             and is no schema of Postgres' own"
        )))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.name
    }

    /// The same, with statements that the server does not keep by a name.
    pub(crate) fn unnamed(self) -> Self {
        Self { named: false, ..self }
    }

    /// The schema of the read model `model`: `<store>_<model>`.
    pub(crate) fn read_model(&self, model: &str) -> Result<Self, InvalidInput> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name = format!("{}_{model}", self.name);
        // A shadow of the schema carries version and generation behind its name.
        if model.starts_with(|c: char| c.is_ascii_lowercase()) && model.chars().all(letters) && name.len() <= 50 {
            return Ok(Self { name, named: self.named });
        }
        Err(InvalidInput::Other(format!(
            "read model name {model:?} is refused: it takes a-z, 0-9 and _, begins with a letter, and its schema {name:?} \
             has at most 50 bytes"
        )))
    }

    /// The schema of a shadow of this read model: its number behind the name, 63 bytes at most.
    pub(crate) fn shadow(&self, generation: i64) -> Self {
        let (mut number, mut digits) = (generation.unsigned_abs(), vec![]);
        while number > 0 {
            digits.extend(char::from_digit((number % 36) as u32, 36));
            number /= 36;
        }
        let digits: String = digits.into_iter().rev().collect();
        Self { name: format!("{}_{digits}", self.name), named: self.named }
    }

    /// The name of a schema as the store has it.
    pub(crate) fn stored(name: String) -> Self {
        Self { name, named: true }
    }

    /// `text` with this read model's schema for `read_model.`, and `store`'s for `annals.`.
    pub(crate) fn instantiate_model(&self, store: &Self, text: &str) -> Statement {
        let text = text.replace("read_model.", &format!("\"{}\".", self.name));
        let text = text.replace("'read_model'", &format!("'\"{}\"'", self.name));
        store.instantiate(&text.replace("schema read_model", &format!("schema \"{}\"", self.name)))
    }

    /// A user's own statements, as they are.
    pub(crate) fn verbatim(&self, text: &'static str) -> Statement {
        Statement::of(self, text.to_owned())
    }

    /// `text` with this store's schema for `annals.`. The one place where SQL is put together.
    pub(crate) fn instantiate(&self, text: &str) -> Statement {
        // In strings the bare name stands: these are names of sequences, tables and settings.
        let parts: Vec<String> = text
            .split("'annals.")
            .map(|part| {
                let part = part.replace("annals.", &format!("\"{}\".", self.name));
                part.replace("schema if not exists annals", &format!("schema if not exists \"{}\"", self.name))
            })
            .collect();
        Statement::of(self, parts.join(&format!("'{}.", self.name)))
    }
}

macro_rules! statements {
    ($($name:ident),* $(,)?) => {
        /// Every statement of the framework, for one store.
        #[derive(Debug)]
        pub(crate) struct Sql {
            $(pub(crate) $name: Statement,)*
        }

        impl Sql {
            pub(crate) fn new(store: &StoreName) -> Self {
                Self { $($name: store.instantiate(include_str!(concat!("sql/", stringify!($name), ".sql"))),)* }
            }

            /// Each statement with its name, so that a test can prepare them all.
            pub(crate) fn all(&self) -> Vec<(&'static str, Statement)> {
                vec![$((stringify!($name), self.$name.clone()),)*]
            }
        }
    };
}

statements! {
    append_events,
    append_each,
    append_one,
    claim_sagas,
    free_sagas,
    release_saga,
    read_saga,
    read_causes,
    free_lost_sagas,
    list_unserved,
    told_attention,
    list_paused,
    take_attention,
    read_heads,
    skip_events,
    read_clock,
    wake_sagas,
    show_breakers,
    read_breaker_orders,
    order_breaker,
    list_breakers,
    count_sagas,
    move_follower,
    raise_version,
    find_appends,
    find_events,
    read_safe_position,
    read_stream_forwards,
    read_stream_backwards,
    read_log,
    read_category,
    read_last_position,
    exists_migrations,
    lock_migrations,
    create_migrations,
    read_migrations,
    insert_migration,
    notify_appended,
    doctor,
    create_roles,
    read_roles,
    begin_read_committed,
    read_checkpoint,
    move_checkpoint,
    record_failure,
    lock_follower,
    read_follower,
    create_generation,
    begin_batch,
    end_batches,
    find_parked,
    park_events,
    unpark_events,
    list_due,
    list_parked_keys,
    read_parked,
    halt_generation,
    list_unregistered,
    retire_generation,
    record_action,
    beat,
    list_units,
    claim_units,
    release_units,
    leave,
    list_neighbours,
    read_positions,
    take_rebuild,
    list_chores,
    lock_live,
    read_shadow,
    set_indexed,
    list_dependents,
    list_readers,
    prepare_swap,
    swap_schemas,
    enter_swap,
    set_live,
    drop_schema,
    forget_generation,
    list_discards,
    copy_discards,
    list_tables,
    set_drain,
    read_places,
    end_verify,
    set_partitions,
    repartition,
    count_parked,
    explain,
    set_definition,
    set_search_path,
    list_analyses,
    set_state,
    request_rebuild,
    list_dead_letters,
    group_dead_letters,
    retry_dead_letters,
    lock_checkpoints,
    discard_dead_letters,
    list_lag,
    list_actions,
    rename_follower,
    forget_follower,
    cancel_rebuild,
    rename_schema,
    load_aggregate,
    find_command,
    read_standing,
    check_projection,
    check_snapshot,
    save_snapshot,
    check_connection,
    identify,
    read_backend,
    forget_statements,
    prepare_append_in,
    savepoint_append_in,
    release_append_in,
    rollback_append_in,
    set_lock_deadline,
    set_statement_deadline,
    settle_batch,
    read_key,
    lock_key,
    list_key_letters,
    end_backend,
    check_positions,
    list_holders,
}
