import t from 'tap'
import { withDatabase } from './database.ts'
import { value } from './fleet.ts'
import { missingColumns, PLACES } from './heartbeat-columns.ts'
import { withServer } from './server.ts'
import { FIELDS } from '../server/ingest/fields.ts'

t.test('every column of the heartbeats is everywhere', async t => {
  const { db, call } = await withServer(t)
  t.same(await missingColumns(t, db, FIELDS, call), [], 'docs/add-a-field.md says which files to change')
})

t.test('each place that misses a column is named', async t => {
  const db = await withDatabase(t)
  await db.sql`alter table fleet.device_heartbeats add column forgotten integer`
  // These take their columns from the catalog, so they miss one only if they are broken.
  const change = async (signature: string, from: string, to: string) => {
    const text = String(await value(db.sql`select pg_get_functiondef(${signature}::regprocedure)`))
    t.ok(text.includes(from), signature)
    await db.sql.unsafe(text.replace(from, () => to))
  }
  await change(
    'fleet.source_query(fleet.imports, text, text)',
    `when 'received_at' then`,
    `when 'forgotten' then 'null' when 'received_at' then`,
  )
  await change(
    'fleet.archive_columns(regclass)',
    'where a.attrelid = p_table',
    `where (a.attname <> 'forgotten' or p_table = 'fleet.device_heartbeats'::regclass) and a.attrelid = p_table`,
  )
  const { call } = await withServer(t, {}, db)
  t.same(
    await missingColumns(t, db, FIELDS, call),
    PLACES.map(place => `${place}: forgotten`),
  )
})
