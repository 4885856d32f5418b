import postgres from 'postgres'
import t, { type Test } from 'tap'
import { waitFor, withDatabase, type TestDatabase } from '../testing/database.ts'
import { whenUnlocked } from './retry.ts'

const { signal } = new AbortController()

t.test('a statement that waits too long for a lock is repeated', async t => {
  const db = await withTables(t)
  const [waiting, holding] = [openSession(t, db), openSession(t, db)]
  await waiting`set lock_timeout = '50ms'`
  await holding`begin`
  await holding`lock table public.other`
  const { codes, done } = repeat(() => waiting.unsafe(lockTables('other')))
  await waitFor(() => Promise.resolve(codes.length > 0))
  await holding`commit`
  await done
  t.same(new Set(codes), new Set(['55P03']))
})

t.test('a statement that was ended by a deadlock is repeated', async t => {
  const db = await withTables(t)
  const [waiting, holding, gate] = [openSession(t, db), openSession(t, db), openSession(t, db)]
  const isWaiting = (name: string) =>
    waitFor(async () => {
      const waits = await db.admin`
        select 1 from pg_locks where relation = ${`public.${name}`}::regclass and not granted`
      return waits.length > 0
    })
  // Only this session looks for a deadlock, so this one is ended.
  await waiting`set deadlock_timeout = '50ms'`
  await holding`set deadlock_timeout = '1h'`
  await gate`begin`
  await gate`lock table public.gate`
  await holding`begin`
  await holding`lock table public.other`
  const { codes, done } = repeat(() => waiting.unsafe(lockTables('one', 'gate', 'other')))
  await isWaiting('gate')
  const held = holding`lock table public.one`.execute()
  await isWaiting('one')
  await gate`commit`
  await held
  await holding`commit`
  await done
  t.same(codes, ['40P01'])
})

t.test('any other error is thrown at once', async t => {
  const db = await withDatabase(t)
  const { codes, done } = repeat(() => db.sql`select 1 / 0`)
  await t.rejects(done, { code: '22012' })
  t.equal(codes.length, 1)
})

async function withTables(t: Test) {
  const db = await withDatabase(t)
  await db.admin.unsafe('create table public.one (); create table public.gate (); create table public.other ()')
  return db
}

function openSession(t: Test, db: TestDatabase) {
  const session = postgres(db.url('postgres'), { max: 1, onnotice: () => {} })
  t.teardown(() => session.end({ timeout: 1 }))
  return session
}

/** A statement that locks tables, one after the other. */
function lockTables(...names: string[]) {
  return `do $$ begin ${names.map(name => `lock table public.${name};`).join(' ')} end $$`
}

/** Calls whenUnlocked(), and notes the code of each error. */
function repeat(statement: () => Promise<unknown>) {
  const codes: unknown[] = []
  const done = whenUnlocked(async () => {
    try {
      await statement()
    } catch (error) {
      codes.push((error as { code: unknown }).code)
      throw error
    }
  }, signal)
  return { codes, done }
}
