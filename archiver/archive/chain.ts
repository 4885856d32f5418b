import { describeError } from '../../lib/errors.ts'
import type { Store } from '../store/store.ts'
import { checkPlace, listManifests, type Manifest, requireManifest, ROOT } from './manifest.ts'
import { manifestHash } from './signature.ts'

/** A manifest of the store, as far as it can be read and believed. */
interface Link {
  day: string
  url: string
  sha256: string
  manifest?: Manifest
  /** Which of the trusted keys signed it, in their order; -1 for none. */
  rank: number
}

/** What a signed manifest says about another day. */
export interface ChainFault {
  /** The day that is not as it was. */
  about: string
  /** The day whose manifest says so. */
  by: string
  fault: string
}

/**
 * Compares each day with what the manifests after it say about it. A manifest is believed if a trusted key signed it, or if one
 * that is believed names it by its hash; that covers the days before the first key. Wrong signatures are found when a manifest
 * is read (checkSignature), and are not told here.
 * @returns nothing if no key is trusted
 */
export async function checkChain(store: Store, signal?: AbortSignal): Promise<ChainFault[]> {
  if (!store.signing?.trusted.size) return []
  const links = await loadLinks(store, signal)
  const byDay = new Map(links.map(link => [link.day, link]))
  const faults: ChainFault[] = []
  const named = new Set<string>()
  for (const link of [...links].reverse()) {
    const { day, url, manifest, rank } = link
    if (!manifest) continue
    if (rank === -1 && !named.has(day)) {
      const signed = links.find(
        ({ day: earlier, rank, manifest: other }) =>
          rank !== -1 && earlier < day && Date.parse(other?.created_at ?? '') <= Date.parse(manifest.created_at),
      )
      if (signed) {
        faults.push({
          about: day,
          by: signed.day,
          fault: `${url}: the manifest is not signed, and ${signed.url}, which was written before it for an earlier day, is signed`,
        })
      }
      continue
    }
    if (!manifest.previous) continue
    const { range_start, manifest_sha256 } = manifest.previous
    const about = range_start.slice(0, 10)
    const previous = byDay.get(about)
    if (!previous) {
      faults.push({ about, by: day, fault: `${store.url}: the archive of ${about} is gone; ${url} names it` })
    } else if (previous.sha256 === manifest_sha256) {
      named.add(about)
    } else if (!isReplaced(previous, manifest_sha256) || previous.rank < rank) {
      // Whoever has only an earlier key, which may have leaked, cannot replace what a manifest of a later key names.
      faults.push({
        about,
        by: day,
        fault:
          `${previous.url}: ${url} names the manifest of this day with the SHA-256 ${manifest_sha256}, which is neither this ` +
          `one's (${previous.sha256}) nor that of one that it replaced and signed with the same key or a later one`,
      })
    }
  }
  return faults.reverse()
}

function isReplaced({ manifest }: Link, sha256: string) {
  return manifest?.history?.some(({ manifest_sha256 }) => manifest_sha256 === sha256) === true
}

async function loadLinks(store: Store, signal?: AbortSignal) {
  const links: Link[] = []
  const waiting = [...(await listManifests(store, signal))]
  const read = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const [day, key] = next
      links.push(await loadLink(store, day, key, signal))
    }
  }
  await Promise.all(Array.from({ length: 8 }, read))
  return links.sort((a, b) => (a.day < b.day ? -1 : 1))
}

async function loadLink(store: Store, day: string, key: string, signal?: AbortSignal): Promise<Link> {
  const url = `${store.url}/${key}`
  try {
    // By its day, because it may have been moved since the store was listed.
    const stored = await requireManifest(store, `${ROOT}date=${day}/any.parquet`, signal)
    checkPlace(store, stored.key, stored.manifest)
    const { bytes, manifest } = stored
    const rank = [...(store.signing?.trusted.keys() ?? [])].indexOf(manifest.signature?.key ?? '')
    return { day, url, sha256: manifestHash(bytes), manifest, rank }
  } catch (error) {
    signal?.throwIfAborted()
    // Whoever reads this day reports what is wrong with it. It is still there, but its hash fits nothing.
    return { day, url, sha256: `none, because ${describeError(error)}`, rank: -1 }
  }
}
