// Failures of merged runs, worked out by hand.
//
// A column is a sector. `x` in `disk` is a bad one. Each line of `requests` is a request, in array order; letters of `fails`
// are those that fail. `content` is what must be there: a letter, `.` for what was there before, `?` where a failed request
// leaves it open (but nothing may be there that nobody wrote). `calls` are the writes that the device is asked for, the
// failed run first, in any order: `#`.

import type { OpenOptions } from 'multiwrite'
import { sector } from './bad-sectors.ts'

export interface Drawing {
  name: string
  disk: string
  requests: string[]
  fails: string
  content: string
  calls: string[]
  /** Those that are tried again alone where the kernel may have merged them with what went out beside them. */
  again?: string[]
  isolated: number
  options?: OpenOptions
}

export const drawings: Drawing[] = [
  {
    name: 'two that touch, the first one bad',
    disk: '.x......',
    requests: ['AA......', '..BB....'],
    fails: 'A',
    content: '??BB....',
    calls: ['####....', '..##....', '##......'],
    isolated: 2,
  },
  {
    name: 'the later of two that overlap is bad: what it hid is written',
    disk: '....x...',
    requests: ['AAA.....', '..BBB...'],
    fails: 'B',
    content: 'AAA??...',
    calls: ['#####...', '..###...', '###.....'],
    isolated: 2,
  },
  {
    name: 'the earlier of two that overlap is bad: what hides it stays',
    disk: 'x.......',
    requests: ['AAA.....', '..BBB...'],
    fails: 'A',
    content: '??BBB...',
    calls: ['#####...', '..###...', '##......'],
    isolated: 2,
  },
  {
    name: 'both of two that overlap are bad',
    disk: '..x.....',
    requests: ['AAA.....', '..BBB...'],
    fails: 'AB',
    content: '?????...',
    calls: ['#####...', '..###...', '###.....'],
    isolated: 2,
  },
  {
    name: 'hidden by one that succeeds: success without I/O',
    disk: '....x...',
    requests: ['.AA.....', 'BBBB....', '....CC..'],
    fails: 'C',
    content: 'BBBB??..',
    calls: ['######..', '....##..', '####....'],
    isolated: 3,
  },
  {
    name: 'hidden by one that fails: written after all',
    disk: '....x...',
    requests: ['.AA.....', 'BBBBB...'],
    fails: 'B',
    content: '?AA??...',
    calls: ['#####...', '#####...', '.##.....'],
    isolated: 2,
  },
  {
    name: 'hidden by one that fails, and that one in part by one that succeeds',
    disk: '.....x..',
    requests: ['AAAA....', '.BBBBB..', '..CC....'],
    fails: 'B',
    content: 'A?CC??..',
    calls: ['######..', '..##....', '.#......', '....##..', '#.......'],
    isolated: 3,
  },
  {
    name: 'equal ranges: the last one wins',
    disk: '..x.....',
    requests: ['AA......', 'BB......', '..C.....', 'DD......'],
    fails: 'C',
    content: 'DD?.....',
    calls: ['###.....', '##......', '..#.....'],
    isolated: 4,
  },
  {
    name: 'equal ranges on a bad sector: all of them fail',
    disk: 'x.......',
    requests: ['AA......', 'BB......'],
    fails: 'AB',
    content: '??......',
    calls: ['##......', '##......', '##......'],
    isolated: 2,
  },
  {
    name: 'a chain, its end bad',
    disk: '......x.',
    requests: ['AAA.....', '..BBB...', '....CCC.'],
    fails: 'C',
    content: 'AABBB??.',
    calls: ['#######.', '....###.', '..###...', '##......'],
    isolated: 3,
  },
  {
    name: 'a chain, its middle bad',
    disk: '...x....',
    requests: ['AAA.....', '..BBB...', '....CCC.'],
    fails: 'B',
    content: 'AAA?CCC.',
    calls: ['#######.', '....###.', '..##....', '###.....'],
    isolated: 3,
  },
  {
    name: 'a chain, its start bad',
    disk: 'x.......',
    requests: ['AAA.....', '..BBB...', '....CCC.'],
    fails: 'A',
    content: '??BBCCC.',
    calls: ['#######.', '....###.', '..##....', '##......'],
    isolated: 3,
  },
  {
    name: 'a chain the other way round, its middle bad',
    disk: '...x....',
    requests: ['....AAA.', '..BBB...', 'CCC.....'],
    fails: 'B',
    content: 'CCC?AAA.',
    calls: ['#######.', '###.....', '...##...', '....###.'],
    isolated: 3,
  },
  {
    name: 'a hole in an earlier one: the two sides of it are written',
    disk: '......x.',
    requests: ['AAAAAA..', '..BB....', '......C.'],
    fails: 'C',
    content: 'AABBAA?.',
    calls: ['#######.', '..##....', '......#.', '##......', '....##..'],
    isolated: 3,
  },
  {
    name: 'several bad sectors, several owners',
    disk: 'x..x...x',
    requests: ['A.......', '.BB.....', '...C....', '....DDD.', '.......E'],
    fails: 'ACE',
    content: '?BB?DDD?',
    calls: ['########', '#.......', '.##.....', '...#....', '....###.', '.......#'],
    isolated: 5,
  },
  {
    name: 'a request without bytes and one of several pieces',
    disk: '...x....',
    requests: ['........', 'BBB.....', '...C....'],
    fails: 'C',
    content: 'BBB?....',
    calls: ['####....', '###.....', '...#....'],
    isolated: 2,
  },
  {
    name: 'a run that a limit cuts: only the half that failed is carried out again',
    disk: '.......x',
    requests: ['AA......', '..BB....', '....CC..', '......DD'],
    fails: 'D',
    content: 'AABBCC??',
    calls: ['####....', '....####', '....##..', '......##'],
    isolated: 2,
    options: { merge: { maxSegments: 2 } },
  },
  {
    name: 'a run that a limit cuts, both halves bad',
    disk: 'x......x',
    requests: ['AA......', '..BB....', '....CC..', '......DD'],
    fails: 'AD',
    content: '??BBCC??',
    calls: ['####....', '....####', '##......', '..##....', '....##..', '......##'],
    isolated: 4,
    options: { merge: { maxSegments: 2 } },
  },
  {
    name: 'a request in two submissions, its neighbour in the second bad',
    disk: '.......x',
    requests: ['AAAAAA..', '......BB'],
    fails: 'B',
    content: 'AAAAAA??',
    calls: ['####....', '....####', '....##..', '......##'],
    isolated: 2,
    options: { merge: { maxBytes: 4 * sector } },
  },
  {
    name: 'a request in two submissions, its own first part bad',
    disk: '.x......',
    requests: ['AAAAAA..', '......BB'],
    fails: 'A',
    content: '??????BB',
    calls: ['####....', '....####'],
    again: ['####....'],
    isolated: 0,
    options: { merge: { maxBytes: 4 * sector } },
  },
  {
    name: 'a request in two submissions, its own second part bad',
    disk: '.....x..',
    requests: ['AAAAAA..', '......BB'],
    fails: 'A',
    content: '??????BB',
    calls: ['####....', '....####', '....##..', '......##'],
    isolated: 2,
    options: { merge: { maxBytes: 4 * sector } },
  },
  {
    name: 'a request in two submissions with a later one across the cut',
    disk: 'x.......',
    requests: ['AAAAAAAA', '..BBBB..'],
    fails: 'A',
    content: '??BBBB??',
    calls: ['######..', '......##', '..####..', '##......'],
    isolated: 2,
    options: { merge: { maxSegments: 2 } },
  },
  {
    name: 'what is not merged is not carried out again',
    disk: '..x.....',
    requests: ['AA......', '..BB....', '....CC..'],
    fails: 'B',
    content: 'AA??CC..',
    calls: ['##......', '..##....', '....##..'],
    again: ['..##....'],
    isolated: 0,
    options: { merge: { mode: 'sort' } },
  },
]

/** Sectors of a drawing. */
export const width = 8
/** Where a drawing lies: none touches another. */
export const placeOf = (index: number): number => 64 * (index + 1)
/** Those of all drawings. */
export const badSectors = drawings.flatMap(({ disk }, index) =>
  [...disk].flatMap((mark, at) => (mark === 'x' ? [placeOf(index) + at] : [])),
)

/** Sectors of a line that are drawn, as ranges. */
export function ranges(line: string): [start: number, length: number][] {
  return [...line.matchAll(/[^.]+/g)].map(({ index, 0: text }) => [index, text.length])
}
