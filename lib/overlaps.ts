// Holds that overlap one another, and who of them waits for whom. The tracker puts a hold here when its range meets another.
//
// All addresses are a binary tree of halves, of which only what is in use exists. A hold *covers* the nodes that lie wholly in
// its range and whose parents do not, and *touches* those that lie in it in part. Two holds overlap if and only if, at some
// node, both cover it, or one covers it and the other touches it, or both touch it and it is a leaf in which they meet. So a
// newcomer has to look at the nodes on the two paths to its ends, where it finds everybody whom it overlaps without looking
// at each of them: at a node it waits for all who cover it, or touch it, up to now.
//
// "All up to now" is a group. Those of one kind at one node stand in a row of groups, in the order of entry; a wait for a group
// is over when it and all groups before it are empty. A group that somebody waits for takes in nobody else; one that has become
// empty hands its waits to the group before it, or if there is none they are over. So a wait is one link, however many are
// waited for, and the end of a hold costs one step per group that it is in.
//
// What it costs, whatever the ranges are and however they lie: at each of the 53 levels a range ends in two nodes at most and
// covers two at most. A newcomer makes at most two links where it touches, four where it covers, and one for each hold of its
// two last leaves (`LEAF_MAX`): less than 2 * (6 * 53 + 32). It is in as many groups as it has nodes, less than 4 * 53; it
// comes down a level when its leaf is split, once for each level. Links and places are given back with the hold, and a node
// that nobody touches any more loses its children. So n holds take time and memory of n times the logarithm of the highest
// address, and a good deal less where leaves have room: they are split where holds are dense, and there only.

/** A claim on a range. `tag` is its owner's. */
export class Hold<T> {
  readonly start: number
  readonly end: number
  readonly read: boolean
  readonly tag: T
  /** Links to what must end before this one may go. */
  blockers = 0
  /** Its number among those that wait. */
  order = 0
  /** What it is among overlapping holds; `null` while it overlaps nobody. */
  entry: Entry<T> | null = null

  constructor(start: number, end: number, read: boolean, tag: T) {
    this.start = start
    this.end = end
    this.read = read
    this.tag = tag
  }
}

/** A hold that overlaps others, or did when it came. */
interface Entry<T> {
  readonly hold: Hold<T>
  readonly groups: Group<T>[]
  /** The leaves that it touches: where it begins and where it ends. */
  readonly leaves: Node<T>[]
  /** For those that wait for this hold alone. */
  own: Group<T> | null
  /** Where it stands in the list of all. */
  index: number
}

/** Somebody waits for a group: a hold to go, or a group to end, of which that one counts as a member. */
interface Wait<T> {
  readonly hold: Hold<T> | null
  readonly group: Group<T> | null
  next: Wait<T> | null
}

/** Holds of one kind at one node that came in a row, with nobody in between who waits for those before. */
interface Group<T> {
  /** Members that have not ended; never 0 for long. */
  live: number
  readonly node: Node<T> | null
  readonly kind: number
  before: Group<T> | null
  after: Group<T> | null
  firstWait: Wait<T> | null
  lastWait: Wait<T> | null
}

interface Node<T> {
  readonly start: number
  readonly end: number
  /** Per kind, the last group. */
  readonly last: [Group<T> | null, Group<T> | null, Group<T> | null, Group<T> | null]
  left: Node<T> | null
  right: Node<T> | null
  /** Of a leaf: those that touch it. */
  touching: Entry<T>[]
}

/** Kinds of groups: what they do with their node, plus 0 for writes and 1 for reads. */
const COVERS = 0
const TOUCHES = 2

/** Every safe integer is below. */
const ADDRESSES = 2 ** 53

/** A leaf with more than so many is split. Looking at each of a few is cheaper than the groups of another level. */
const LEAF_MAX = 32

export class Overlaps<T> {
  #root: Node<T> = newNode<T>(0, ADDRESSES)
  readonly #entries: Entry<T>[] = []

  get count(): number {
    return this.#entries.length
  }

  /** Whether one of them is in the way of an operation on the range. */
  conflicts(start: number, end: number, read: boolean): boolean {
    return this.#reaches(start, end) && meets(this.#root, start, end, read)
  }

  /** Takes a hold in. @param waits whether behind those that are in its way; each link counts in `blockers` */
  add(hold: Hold<T>, waits: boolean): void {
    if (this.#entries.length === LEAF_MAX) this.#narrow()
    const entry: Entry<T> = { hold, groups: [], leaves: [], own: null, index: this.#entries.length }
    hold.entry = entry
    this.#entries.push(entry)
    while (hold.start < this.#root.start || this.#root.end < hold.end) this.#root = above(this.#root)
    enter(this.#root, hold, entry, waits)
  }

  /** Lets a hold that is not taken in wait for those that are in its way. */
  wait(hold: Hold<T>): void {
    if (this.#reaches(hold.start, hold.end)) enter(this.#root, hold, null, true)
  }

  /** Takes a hold out; those that have nothing left to wait for are appended to `released`. */
  remove(hold: Hold<T>, released: Hold<T>[]): void {
    const { groups, leaves, index } = hold.entry!
    for (const { touching } of leaves) swapOut(touching, touching.indexOf(hold.entry!))
    for (const group of groups) leaveGroup(group, released)
    const moved = swapOut(this.#entries, index)
    if (moved !== undefined) moved.index = index
    hold.entry = null
    if (this.#entries.length === 0) this.#root = newNode<T>(0, ADDRESSES)
  }

  #reaches(start: number, end: number): boolean {
    return this.#entries.length > 0 && start < this.#root.end && this.#root.start < end
  }

  /**
   * Before the first split: the levels above all that is here would be the same few nodes for everyone. The root is what holds
   * them, and grows when somebody comes from outside.
   */
  #narrow(): void {
    const root = this.#root
    if (root.end - root.start < ADDRESSES || root.touching.length < this.#entries.length) return
    let [from, to] = [ADDRESSES, 0]
    for (const { hold } of root.touching) {
      from = Math.min(from, hold.start)
      to = Math.max(to, hold.end)
    }
    let size = 1
    while (from - (from % size) + size < to) size *= 2
    from -= from % size
    this.#root = newNode(from, from + size)
    moveDown(root, [this.#root])
  }

  /** All that meet a range. Looks at each one: for where there can't be many. */
  overlapping(start: number, end: number): Hold<T>[] {
    const found: Hold<T>[] = []
    for (const { hold } of this.#entries) if (hold.start < end && start < hold.end) found.push(hold)
    return found
  }
}

function newNode<T>(start: number, end: number): Node<T> {
  return { start, end, last: [null, null, null, null], left: null, right: null, touching: [] }
}

function meets<T>(node: Node<T>, start: number, end: number, read: boolean): boolean {
  const { last, left, right } = node
  if (last[COVERS] !== null || (!read && last[COVERS + 1] !== null)) return true
  if (last[TOUCHES] === null && (read || last[TOUCHES + 1] === null)) return false
  if (start <= node.start && node.end <= end) return true
  if (left === null || right === null) {
    for (const { hold } of node.touching) {
      if (hold.start < end && start < hold.end && !(read && hold.read)) return true
    }
    return false
  }
  return (start < left.end && meets(left, start, end, read)) || (end > right.start && meets(right, start, end, read))
}

/** Puts a hold in its places from a node on down, unless `entry` is `null`, behind those that it `waits` for. */
function enter<T>(node: Node<T>, hold: Hold<T>, entry: Entry<T> | null, waits: boolean): void {
  const { left, right } = node
  if (waits) waitForAll(node, COVERS, hold)
  if (hold.start <= node.start && node.end <= hold.end) {
    if (waits) waitForAll(node, TOUCHES, hold)
    if (entry !== null) join(node, COVERS, entry)
    return
  }
  if (entry !== null) join(node, TOUCHES, entry)
  if (left !== null && right !== null) {
    if (hold.start < left.end) enter(left, hold, entry, waits)
    if (hold.end > right.start) enter(right, hold, entry, waits)
    return
  }
  if (waits) {
    for (const other of node.touching) {
      if (other.hold.start < hold.end && hold.start < other.hold.end && !(hold.read && other.hold.read)) {
        waitFor(other.own ?? newOwn(other), hold)
      }
    }
  }
  if (entry === null) return
  node.touching.push(entry)
  entry.leaves.push(node)
  if (node.touching.length > LEAF_MAX) split(node)
}

/** A new root with the old one as one of its halves. Whoever is there touches it, by way of a member that stands for all. */
function above<T>(root: Node<T>): Node<T> {
  const size = root.end - root.start
  const start = root.start - (root.start % (2 * size))
  const node = newNode<T>(start, start + 2 * size)
  node.left = root.start === start ? root : newNode<T>(start, root.start)
  node.right = root.start === start ? newNode<T>(root.end, start + 2 * size) : root
  for (const kind of [0, 1]) {
    const group: Group<T> = newGroup<T>(0, node, TOUCHES + kind, null)
    for (const what of [COVERS, TOUCHES]) {
      const last = root.last[what + kind]!
      if (last === null) continue
      link(last, { hold: null, group, next: null })
      group.live++
    }
    if (group.live > 0) node.last[TOUCHES + kind] = group
  }
  return node
}

function split<T>(node: Node<T>): void {
  const middle = (node.start + node.end) / 2
  node.left = newNode<T>(node.start, middle)
  node.right = newNode<T>(middle, node.end)
  moveDown(node, [node.left, node.right])
}

/** Those who touch a leaf are put into others instead. Whoever waits for them has his links already. */
function moveDown<T>(leaf: Node<T>, nodes: readonly Node<T>[]): void {
  const entries = leaf.touching
  leaf.touching = []
  for (const entry of entries) {
    swapOut(entry.leaves, entry.leaves.indexOf(leaf))
    for (const node of nodes) {
      if (entry.hold.start < node.end && node.start < entry.hold.end) enter(node, entry.hold, entry, false)
    }
  }
}

function join<T>(node: Node<T>, what: number, entry: Entry<T>): void {
  const kind = entry.hold.read ? what + 1 : what
  const last = node.last[kind]!
  if (last !== null && last.firstWait === null) {
    last.live++
    entry.groups.push(last)
    return
  }
  const group = newGroup(1, node, kind, last)
  if (last !== null) last.after = group
  node.last[kind] = group
  entry.groups.push(group)
}

function newGroup<T>(live: number, node: Node<T> | null, kind: number, before: Group<T> | null): Group<T> {
  return { live, node, kind, before, after: null, firstWait: null, lastWait: null }
}

function newOwn<T>(entry: Entry<T>): Group<T> {
  const group = newGroup<T>(1, null, 0, null)
  entry.own = group
  entry.groups.push(group)
  return group
}

function waitForAll<T>(node: Node<T>, what: number, hold: Hold<T>): void {
  const writes = node.last[what]!
  if (writes !== null) waitFor(writes, hold)
  if (hold.read) return
  const reads = node.last[what + 1]!
  if (reads !== null) waitFor(reads, hold)
}

function waitFor<T>(group: Group<T>, hold: Hold<T>): void {
  hold.blockers++
  link(group, { hold, group: null, next: null })
}

function link<T>(group: Group<T>, wait: Wait<T>): void {
  if (group.lastWait === null) group.firstWait = wait
  else group.lastWait.next = wait
  group.lastWait = wait
}

function leaveGroup<T>(group: Group<T>, released: Hold<T>[]): void {
  if (--group.live > 0) return
  const { node, kind, before, after, firstWait, lastWait } = group
  if (after !== null) after.before = before
  else if (node !== null) node.last[kind] = before
  if (before !== null) {
    before.after = after
    if (firstWait === null) return
    if (before.lastWait === null) before.firstWait = firstWait
    else before.lastWait.next = firstWait
    before.lastWait = lastWait
    return
  }
  for (let wait = firstWait; wait !== null; wait = wait.next) {
    if (wait.hold === null) leaveGroup(wait.group!, released)
    else if (--wait.hold.blockers === 0) released.push(wait.hold)
  }
  if (node === null || node.last[TOUCHES] !== null || node.last[TOUCHES + 1] !== null) return
  node.left = null
  node.right = null
}

/** Takes an element out of a list in no order; returns the one that is in its place now, if any is. */
function swapOut<E>(list: E[], index: number): E | undefined {
  const last = list.pop()!
  if (index === list.length) return undefined
  list[index] = last
  return last
}
