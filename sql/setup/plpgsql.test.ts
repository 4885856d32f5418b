import t from 'tap'
import { withoutPlpgsqlCheck } from '../../local/packages.ts'
import { testCluster, withCronDatabase } from '../../testing/database.ts'
import { asRole } from '../../testing/fleet.ts'

const skip = await withoutPlpgsqlCheck(testCluster().postgres)

t.test('plpgsql_check finds nothing in any function, procedure or trigger', { skip }, async t => {
  // In the database of pg_cron, so that statements on its tables are checked, too. The transaction is rolled back at the end.
  const admin = asRole(t, withCronDatabase(t), 'postgres')
  await admin`begin`
  await admin`create schema lint`
  await admin`create extension plpgsql_check schema lint`
  const routines = await admin<{ name: string; faults: string[] | null }[]>`
    select p.oid::regprocedure::text as name,
      (
        select array_agg(c)
        from lint.plpgsql_check_function(p.oid, coalesce(g.tgrelid, 0), newtable => g.tgnewtable, oldtable => g.tgoldtable) c
      ) as faults
    from pg_proc p
    join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
    left join pg_trigger g on g.tgfoid = p.oid and g.tgparentid = 0
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
  `
  t.ok(routines.length > 60, `${routines.length} routines`)
  for (const { name, faults } of routines) t.same(isForOthers(faults) ? null : faults, null, name)
  await admin`rollback`
})

/** What does not exist here or now: each is the only error of its function. */
const ELSEWHERE = [
  // Only in pg_partman 4; not called when 5 is installed.
  /^error:42883:\d+:EXECUTE:function partman\.create_partition_time\(.*p_analyze => boolean\)/,
  // The catalog of Citus, and a table of a distributed store.
  /^error:42P01:\d+:RETURN QUERY:relation "pg_catalog\.pg_dist_shard"/,
  /^error:42P01:\d+:EXECUTE:relation "fleet\.online_ranges"/,
  // The rows of a statement, in its trigger. Newer versions of plpgsql_check look into EXECUTE, but not with these.
  /^error:42P01:\d+:EXECUTE:relation "(is_now|was)"/,
]

function isForOthers(faults: string[] | null) {
  const errors = faults?.filter(line => /^(error|warning)/.test(line)) ?? []
  return errors.length === 1 && ELSEWHERE.some(pattern => pattern.test(errors[0]!))
}
