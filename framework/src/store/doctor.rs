//! Protection: the roles that a store should be used with, and what is missing from it.

use std::time::Duration;

use sqlx::{Connection, Row};

use crate::{
    error::StoreError,
    store::{Annals, Holder, connect, within},
};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A promise is weaker than it should be, or will be.
    Warning,
    /// A promise is broken.
    Fault,
}

/// Something that [`Annals::doctor`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, and where.
    pub what: String,
    /// What cures it.
    pub cure: String,
}

/// The names of a store's roles. Roles belong to the whole server, so the names carry database and store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// Owns the store and may migrate it.
    pub owner: String,
    /// Appends and projects; cannot alter history. The application logs in as a member of it.
    pub writer: String,
    /// Reads.
    pub reader: String,
}

impl Annals {
    /// Looks for protection that is missing: guards, settings, roles, transactions that hold readers back, followers
    /// that fail. Empty when all is well. Faults come first.
    ///
    /// # Errors
    /// As any read: [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn doctor(&self) -> Result<Vec<Finding>, StoreError> {
        let (sql, positions) = (self.inner.sql.doctor.clone(), self.inner.sql.check_positions.clone());
        let rows = self
            .inner
            .read("look for missing protection", |mut conn| {
                let sql = sql.clone();
                async move { sql.query().fetch_all(&mut *conn).await }
            })
            .await?;
        let faults: Vec<String> = self
            .inner
            .read("check the sequence of positions", |mut conn| {
                let positions = positions.clone();
                async move { positions.scalar().fetch_all(&mut *conn).await }
            })
            .await?;
        let mut findings: Vec<Finding> = faults
            .into_iter()
            .map(|what| Finding { severity: Severity::Fault, what, cure: "as it says".into() })
            .chain(rows.iter().map(|row| Finding {
                severity: if row.get::<&str, _>(0) == "fault" { Severity::Fault } else { Severity::Warning },
                what: row.get(1),
                cure: row.get(2),
            }))
            .collect();
        findings.extend(self.holders().await?.iter().filter_map(waiting_for));
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(findings)
    }

    /// Makes the store's roles, or brings their grants up to date, and gives the store and its read models to the owner
    /// role.
    ///
    /// Call it once, from a role with CREATEROLE that owns the store. The application then logs in as a member of
    /// [`Roles::writer`], which cannot alter history: P11. A read model that is set up later is opened to writer and
    /// reader by whoever sets it up; call this again to give it to the owner role too. Nothing else that is made later is
    /// opened to them.
    ///
    /// # Errors
    /// - [`StoreError::Refused`] if this role may not make roles or does not own the store, or if a role of that name
    ///   serves another database or store: its source says which, and what to do. Nothing is changed then.
    /// - [`StoreError::Unavailable`] if another transaction holds a lock on the store for 5 seconds. Nothing is changed.
    /// - [`StoreError::Timeout`] if the server does not answer: the roles may be made or not. Call it again.
    pub async fn create_roles(&self) -> Result<Roles, StoreError> {
        let what = "create the store's roles";
        let config = self.config();
        // A connection of its own, which ends with this call: the pool never gets one that still waits for a lock.
        let mut conn = connect(&self.inner.options, config.connect_deadline).await?;
        let creating = async {
            sqlx::raw_sql(self.inner.sql.create_roles.text()).execute(&mut conn).await?;
            self.inner.sql.read_roles.query().fetch_one(&mut conn).await
        };
        let row = within(config.read_deadline, what, creating).await?.map_err(StoreError::on(what))?;
        let _ = within(config.read_deadline, what, conn.close()).await;
        Ok(Roles { owner: row.get(0), writer: row.get(1), reader: row.get(2) })
    }
}

/// What there is to say about a transaction that readers wait for; nothing in its first seconds.
fn waiting_for(holder: &Holder) -> Option<Finding> {
    const LONG: Duration = Duration::from_secs(5);
    let open = match holder.age {
        Some(age) if age < LONG => return None,
        Some(age) => format!("is open for {} s", age.as_secs()),
        None => "is open for a time that this role may not see".into(),
    };
    let pid = holder.pid.map_or_else(|| "none".into(), |pid| pid.to_string());
    let cure = match (holder.pid, holder.age) {
        (None, _) => "commit or roll back the prepared transaction".into(),
        (Some(pid), Some(_)) => format!("end it, or select pg_terminate_backend({pid})"),
        (Some(pid), None) => format!(
            "grant pg_read_all_stats to the store's writer role and look again; if it stays open, end it, or select \
             pg_terminate_backend({pid})"
        ),
    };
    Some(Finding {
        severity: Severity::Warning,
        what: format!(
            "readers wait at position {} for a transaction that has appended and {open}: pid {pid}, application {:?}, {}",
            holder.position, holder.application, holder.state
        ),
        cure,
    })
}
