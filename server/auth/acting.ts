import type { Context } from 'hono'
import type { PendingQuery, Row } from 'postgres'
import { clientAddress } from './address.ts'
import type { Principal } from './principal.ts'
import type { Scope } from './scopes.ts'
import type { Sql } from '../database.ts'
import type { AppEnv } from '../env.ts'
import { Problem, requestId } from '../problem.ts'

/** @throws Problem 403 if the caller may not do this */
export function requireScope({ how, actor, scopes }: Principal, scope: Scope) {
  if (scopes.includes(scope)) return
  const detail = `The ${how} of ${actor} does not have the scope ${scope}; it has ${scopes.join(', ')}.`
  throw new Problem(403, detail, {
    hint: how === 'key' ? `Use a key that has it: select fleet.create_api_key('…', '{${scope}}');` : undefined,
    headers: { 'www-authenticate': `Bearer realm="fleet", error="insufficient_scope", scope="${scope}"` },
  })
}

/**
 * A call of fleet.act(), which names the caller for the rest of the transaction and checks once more that the key or session is
 * valid. Use it as the FROM of a statement that does something: Postgres evaluates it before the select list. A function in FROM
 * beside it has to take an argument from it (`case when is_acting then … end`), so that it is called afterwards.
 */
export function acting(
  sql: Sql,
  c: Context<AppEnv>,
  scope: Scope,
  { isLocal = true, trustProxy }: { isLocal?: boolean; trustProxy: boolean },
): PendingQuery<Row[]> {
  const { how, actor, credential } = c.get('principal')
  const { incoming } = c.env
  return sql`
    fleet.act(
      ${how}, ${actor}, ${credential === undefined ? null : `\\x${credential}`}::text::bytea, ${scope}, ${requestId(incoming)},
      ${clientAddress(incoming, trustProxy)}, ${isLocal}
    ) as is_acting
  `
}
