import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { Lane } from './lane.ts'

type Entered = Awaited<ReturnType<Lane['enter']>> | 'waiting'

/** Enters, and remembers what became of it. */
function enter(lane: Lane, network: string) {
  const entry: { now: Entered } = { now: 'waiting' }
  void lane.enter(network).then(leave => {
    entry.now = leave
  })
  return entry
}

const states = (entries: { now: Entered }[]) =>
  entries.map(({ now }) => (now === 'waiting' ? now : now === undefined ? 'refused' : 'in'))

t.test(
  'a network has a few places, all networks together have a few more, and a place that is free goes to the next one',
  async t => {
    const lane = new Lane({ places: 3, ofNetwork: 2, waiting: 2, pauseMs: 0 })
    const a = [1, 2, 3].map(() => enter(lane, 'a'))
    const b = [1, 2].map(() => enter(lane, 'b'))
    const c = [enter(lane, 'c')]
    await turn()
    t.same([states(a), states(b), states(c)], [['in', 'in', 'waiting'], ['in', 'waiting'], ['waiting']])
    const leave = (entry: { now: Entered }) => (entry.now as (isGood: boolean) => void)(true)
    leave(b[0]!)
    await turn()
    t.same([states(a), states(b), states(c)], [['in', 'in', 'waiting'], ['in', 'in'], ['waiting']])
    leave(b[1]!)
    await turn()
    t.same([states(a), states(c)], [['in', 'in', 'waiting'], ['in']], 'a has all its places, so c is the next')
    leave(c[0]!)
    leave(a[0]!)
    await turn()
    t.same(states(a), ['in', 'in', 'in'])
  },
)

t.test('of too many that wait one is refused, chosen at random, and so is the one that gets the next place', async t => {
  const choices = [0, 0.99, 0.5]
  const lane = new Lane({ places: 1, ofNetwork: 1, waiting: 2, pauseMs: 1 }, () => choices.shift() ?? 0)
  const entries = [1, 2, 3, 4, 5].map(() => enter(lane, 'a'))
  await turn()
  t.same(states(entries), ['in', 'refused', 'waiting', 'waiting', 'refused'])
  ;(entries[0]!.now as (isGood: boolean) => void)(false)
  while (states(entries).filter(state => state === 'waiting').length > 1) await new Promise(resolve => setTimeout(resolve, 1))
  t.same(states(entries).slice(2, 4), ['waiting', 'in'])
})

t.test('a wrong token keeps its place for the pause, and a good one gives it back at once', async t => {
  for (const isGood of [false, true]) {
    const lane = new Lane({ places: 1, ofNetwork: 1, waiting: 2, pauseMs: 60_000 })
    const entries = [1, 2].map(() => enter(lane, 'a'))
    await turn()
    ;(entries[0]!.now as (isGood: boolean) => void)(isGood)
    await turn()
    t.same(states(entries), ['in', isGood ? 'in' : 'waiting'])
  }
})

t.test('who comes last is let in as often as who comes first', async t => {
  const lane = new Lane({ places: 2, ofNetwork: 2, waiting: 8, pauseMs: 0 })
  let last = 0
  for (let round = 0; round < 500; round++) {
    // A place is never free for longer than the flood needs to take it.
    const flood = Array.from({ length: 20 }, () => enter(lane, 'a'))
    const device = enter(lane, 'a')
    for (const all = [...flood, device]; all.some(({ now }) => now !== undefined);) {
      await turn()
      for (const entry of all) {
        if (typeof entry.now !== 'function') continue
        if (entry === device) last++
        entry.now(true)
        entry.now = undefined
      }
    }
  }
  t.ok(last > 100, `${last} of 500`)
})
