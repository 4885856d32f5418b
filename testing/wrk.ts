import { hasPrograms, testPrograms } from './optional-programs.ts'

/** The program that sends in the benchmarks compare and targets. */
export const wrk = testPrograms('wrk', ['wrk'], () => hasPrograms('wrk'))
