import type { Context, Handler } from 'hono'
import { z } from 'zod'
import type { AppEnv } from '../env.ts'
import type { ServerConfig } from '../config.ts'
import { connectOps, end, type Sql } from '../database.ts'
import type { Nodes } from '../ingest/nodes.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from './metrics.ts'
import type { Reader } from '../reader.ts'
import { acting } from '../auth/acting.ts'
import { validQuery } from '../valid.ts'

export const nightlyQuery = z.object({
  dry_run: z
    .enum(['0', '1', 'false', 'true'], 'must be 0 or 1')
    .default('0')
    .transform(value => value === '1' || value === 'true'),
  retention_days: z
    .string()
    .regex(/^[1-9]\d{0,4}$/, 'must be a whole number from 1 to 99999')
    .meta({ type: 'integer', minimum: 1, maximum: 99999, pattern: undefined })
    .transform(days => `${days} days`)
    .optional(),
})

/** Runs the nightly work now, or with dry_run=1 returns what it would do. Answers when that is finished. */
export function postNightly(config: ServerConfig, ops: Sql, log: Log): Handler<AppEnv> {
  return async c => {
    const { dry_run, retention_days: retention = null } = validQuery(nightlyQuery, c)
    const steps = dry_run
      ? await ops`select step, partition_name, detail from fleet.nightly_plan(${retention}::interval)`
      : await runNightly(c, config, retention, log)
    return c.json({ steps })
  }
}

interface Step {
  step: string
  partition_name: string | null
  detail: string | null
  rows: number | null
  duration_ms: number | null
  ok: boolean | null
}

async function runNightly(c: Context<AppEnv>, config: ServerConfig, retention: string | null, log: Log) {
  // The run holds an advisory lock of its session across its transactions. So it has a connection of its own, and the lock ends
  // with it.
  const sql = connectOps(config.ops, 1)
  try {
    await sql`select from ${acting(sql, c, 'operate', { ...config, isLocal: false })}`
    const [run] = await sql<{ p_run_id: number }[]>`call fleet.nightly(null, ${retention}::interval)`
    const steps = await sql<Step[]>`
      select step, partition_name, detail, rows, duration_ms, ok from fleet.run_steps(${run!.p_run_id})
    `
    // The same as in fleet.events. Steps of runs by pg_cron are only there.
    for (const { step, partition_name, ...about } of steps) log.info({ event: step, partition: partition_name, ...about })
    return steps
  } finally {
    await end(sql)
  }
}

export function postReconcile(config: ServerConfig, ops: Sql, log: Log): Handler<AppEnv> {
  return async c => {
    const [run] = await ops<{ checked: number; updated: number; elapsed_ms: number }[]>`
      select r.checked, r.updated, r.elapsed_ms::float8
      from ${acting(ops, c, 'operate', config)}
      cross join lateral fleet.reconcile(case when is_acting then interval '24 hours' end) r
    `
    log.info({ event: 'reconciliation.completed', ...run! })
    return c.json(run!)
  }
}

/**
 * For the person on call: from 80 % the pools of all workers are nearly full, from 95 % requests wait for a connection. It opens a
 * connection of its own, because those that are open do not show that the next one will be refused.
 */
export function getPoolHealth(metrics: Metrics, nodes: Nodes, reader: Reader): Handler<AppEnv> {
  return async c => {
    const registry = await metrics.ofAllWorkers()
    const sum = async (name: string) => (await registry.getSingleMetric(name)!.get()).values[0]!.value
    const [in_use, max, waiting] = [await sum('db_pool_in_use'), await sum('db_pool_max'), await sum('db_pool_waiting')]
    const used = (100 * in_use) / max
    const all = nodes.all
    const reasons = await Promise.all(all.map(({ pool }) => pool.probe()))
    const first = reasons.findIndex(why => why !== undefined)
    const reason = first > 0 ? `${all[first]!.name}: ${reasons[first]}` : reasons[first]
    const status = reason !== undefined || used >= 95 ? 'critical' : used >= 80 ? 'warn' : 'ok'
    // Rounded down, so that it never shows a limit that is not reached.
    const utilization_pct = Math.floor(used)
    const byNode = nodes.isDistributed
      ? all.map(({ name, pool, shards }, nth) => ({
          node: name,
          status: pool.isAway ? 'away' : reasons[nth] === undefined ? 'ok' : 'refuses',
          reason: reasons[nth],
          shards,
          pool: { in_use: pool.inUse, max: pool.max, waiting: pool.waiting },
        }))
      : undefined
    return c.json(
      { status, reason, pool: { in_use, max, utilization_pct, waiting }, nodes: byNode, replica: reader.status },
      200,
      { 'cache-control': 'no-store' },
    )
  }
}
