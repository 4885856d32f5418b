create or replace view fleet.storage_history as
select d.day, d.rows_online, d.bytes_online, d.bytes_archived, d.bytes_pushed, d.database_bytes,
  d.rows_online - lag(d.rows_online) over w as rows_added,
  d.bytes_online - lag(d.bytes_online) over w as bytes_added,
  d.bytes_pushed - lag(d.bytes_pushed) over w as bytes_pushed_since,
  d.noted_at
from fleet.storage_daily d
window w as (order by d.day)
order by d.day desc;

comment on view fleet.storage_history is
  'Rows and bytes online and in the archive, and the size of the database, as each nightly run found them, newest first. The '
  'columns that end in _added or _since are the difference from the row before. '
  'Example: select day, database_bytes, bytes_pushed_since from fleet.storage_history where day > current_date - 30;';
