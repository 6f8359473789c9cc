//! A database for each measurement, and events in it that no measurement has to wait for.

use annals::BoxError;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::server::Server;

const NAME: &str = "annals_peers";

/// The read model of every package that leaves its table to the user.
const READ_MODEL: &str = "create table read_model (stream text primary key, counted bigint not null)";

/// Makes the database anew; its address.
pub(crate) async fn fresh(server: &Server) -> Result<String, BoxError> {
    remove(server).await?;
    server.run(format!("create database {NAME}")).await?;
    let url = url_of(server.url())?;
    run(&url, READ_MODEL).await?;
    Ok(url)
}

/// Removes it.
pub(crate) async fn remove(server: &Server) -> Result<(), BoxError> {
    server.run(format!("drop database if exists {NAME} with (force)")).await
}

/// Fills a package's tables with `events` events, `length` to a stream, as 32 writers leave them that each fill one stream,
/// then the next. `insert` makes them of the rows of `seed (n, stream uuid, version)`. Returns the streams.
pub(crate) async fn fill(url: &str, events: usize, length: usize, insert: &str) -> Result<Vec<Uuid>, BoxError> {
    let (streams, block) = (events / length, 32 * length);
    run(
        url,
        &format!(
            "create unlogged table seed as
             select n, md5('seed' || stream)::uuid as stream, row_number() over (partition by stream order by n) as version
             from (select n, 32 * (n / {block}) + n % {block} % least(32, {streams} - 32 * (n / {block})) as stream
                   from generate_series(0, {events} - 1) n) s;
             analyze seed"
        ),
    )
    .await?;
    run(url, insert).await?;
    let mut connection = connect(url).await?;
    let streams = sqlx::query_scalar("select stream from seed where version = 1 order by n");
    let streams = streams.fetch_all(&mut connection).await?;
    run(url, "drop table seed").await?;
    // Not in a transaction, as the statements above are.
    run(url, "vacuum analyze").await?;
    Ok(streams)
}

/// Runs statements that have no result. `sql` holds nothing from outside.
pub(crate) async fn run(url: &str, sql: &str) -> Result<(), BoxError> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connect(url).await?).await?;
    Ok(())
}

/// A connection beside everything that is measured.
pub(crate) async fn connect(url: &str) -> Result<PgConnection, BoxError> {
    Ok(PgConnection::connect(url).await?)
}

/// The same server's address with this database.
fn url_of(url: &str) -> Result<String, BoxError> {
    let (address, query) = url.split_once('?').map_or((url, None), |(address, query)| (address, Some(query)));
    let (server, _) = address.rsplit_once('/').ok_or("the server's URL names no database")?;
    Ok(format!("{server}/{NAME}{}", query.map(|query| format!("?{query}")).unwrap_or_default()))
}
