//! The SQL of the framework: one statement a file, instantiated once a store.

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::error::InvalidInput;

/// The validated name of a store's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreName(String);

impl StoreName {
    pub(crate) fn new(name: &str) -> Result<Self, InvalidInput> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.starts_with("pg_");
        let taken = matches!(name, "public" | "information_schema" | "plpgsql");
        if starts_well && !taken && name.len() <= 30 && name.chars().all(letters) {
            return Ok(Self(name.into()));
        }
        Err(InvalidInput::Other(format!(
            "store name {name:?} is refused: it takes 1 to 30 of a-z, 0-9 and _, begins with a letter, not with pg_, \
             and is no schema of Postgres' own"
        )))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The schema of the read model `model`: `<store>_<model>`.
    pub(crate) fn read_model(&self, model: &str) -> Result<Self, InvalidInput> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name = format!("{}_{model}", self.0);
        // A shadow of the schema carries version and generation behind its name.
        if model.starts_with(|c: char| c.is_ascii_lowercase()) && model.chars().all(letters) && name.len() <= 50 {
            return Ok(Self(name));
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
        Self(format!("{}_{digits}", self.0))
    }

    /// The name of a schema as the store has it.
    pub(crate) fn stored(name: String) -> Self {
        Self(name)
    }

    /// `text` with this read model's schema for `read_model.`, and `store`'s for `annals.`.
    pub(crate) fn instantiate_model(&self, store: &Self, text: &str) -> SqlStr {
        let text = text.replace("read_model.", &format!("\"{}\".", self.0));
        let text = text.replace("'read_model'", &format!("'\"{}\"'", self.0));
        store.instantiate(&text.replace("schema read_model", &format!("schema \"{}\"", self.0)))
    }

    /// A user's own statements, as they are.
    pub(crate) fn verbatim(&self, text: &'static str) -> SqlStr {
        text.into_sql_str()
    }

    /// `text` with this store's schema for `annals.`. The one place where SQL is put together.
    pub(crate) fn instantiate(&self, text: &str) -> SqlStr {
        // In strings the bare name stands: these are names of sequences, tables and settings.
        let parts: Vec<String> = text
            .split("'annals.")
            .map(|part| {
                let part = part.replace("annals.", &format!("\"{}\".", self.0));
                part.replace("schema if not exists annals", &format!("schema if not exists \"{}\"", self.0))
            })
            .collect();
        AssertSqlSafe(parts.join(&format!("'{}.", self.0))).into_sql_str()
    }
}

macro_rules! statements {
    ($($name:ident),* $(,)?) => {
        /// Every statement of the framework, for one store.
        #[derive(Debug)]
        pub(crate) struct Sql {
            $(pub(crate) $name: SqlStr,)*
        }

        impl Sql {
            pub(crate) fn new(store: &StoreName) -> Self {
                Self { $($name: store.instantiate(include_str!(concat!("sql/", stringify!($name), ".sql"))),)* }
            }

            /// Each statement with its name, so that a test can prepare them all.
            pub(crate) fn all(&self) -> Vec<(&'static str, SqlStr)> {
                vec![$((stringify!($name), self.$name.clone()),)*]
            }
        }
    };
}

statements! {
    append_events,
    append_each,
    append_one,
    find_append,
    find_events,
    read_safe_position,
    read_stream_forwards,
    read_stream_backwards,
    read_log,
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
    prepare_append_in,
    savepoint_append_in,
    release_append_in,
    rollback_append_in,
    prepare_lane,
    set_lock_deadline,
    end_backend,
    check_positions,
    list_holders,
}
