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
  const routines = await admin<{ name: string; faults: string[]; volatile: string[] | null }[]>`
    select p.oid::regprocedure::text as name,
      (
        select coalesce(array_agg(c), '{}')
        from lint.plpgsql_check_function(p.oid, coalesce(g.tgrelid, 0), newtable => g.tgnewtable, oldtable => g.tgoldtable) c
      ) as faults,
      (
        select array_agg(distinct f.oid::regprocedure::text)
        from lint.plpgsql_show_dependency_tb(p.oid, coalesce(g.tgrelid, 0)) d
        join pg_proc f on d.type = 'FUNCTION' and f.oid = d.oid
        where p.provolatile <> 'v' and f.provolatile = 'v'
      ) as volatile
    from pg_proc p
    join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
    left join pg_trigger g on g.tgfoid = p.oid and g.tgparentid = 0
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
  `
  t.ok(routines.length > 60, `${routines.length} routines`)
  for (const { name, faults, volatile } of routines) {
    t.same(findingsOf(faults), [], `${name}: ${faults.join('\n')}`)
    // These may write. Postgres would refuse that only when it happens.
    t.same(volatile, null, `${name}: not volatile, so it calls no volatile routine of ours`)
  }
  await admin`rollback`
})

/**
 * Newer versions of plpgsql_check say this of functions that read the clock or the size of a file. They are STABLE nevertheless, so
 * that all their statements see the same rows.
 */
const CLOCK_OR_FILES = /^warning:00000:\d+:[^:]+:routine is marked as STABLE, but expression is VOLATILE$/

/** What does not exist here or now. */
const ELSEWHERE = [
  // Only in pg_partman 4; not called when 5 is installed.
  /^error:42883:\d+:EXECUTE:function partman\.create_partition_time\(.*p_analyze => boolean\)/,
  // The catalog of Citus, and a table of a distributed store.
  /^error:42P01:\d+:RETURN QUERY:relation "pg_catalog\.pg_dist_shard"/,
  /^error:42P01:\d+:EXECUTE:relation "fleet\.online_ranges"/,
  // The rows of a statement, in its trigger. Newer versions of plpgsql_check look into EXECUTE, but not with these.
  /^error:42P01:\d+:EXECUTE:relation "(is_now|was)"/,
]

/** What plpgsql_check says, without its details and hints: `level:code:line:statement:message`. */
const findingsOf = (lines: string[]) =>
  lines.filter(
    line => /^[a-z ]+:[0-9A-Z]{5}:/.test(line) && !CLOCK_OR_FILES.test(line) && !ELSEWHERE.some(known => known.test(line)),
  )
