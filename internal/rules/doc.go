// Package rules decides by declarative rules. It owns what a rule may say, what
// a set of rules means, and the compiled form that answers; where rules come
// from and when they are replaced is the business of others.
//
// Invariants:
//
//   - A [Set] does not change once made; whoever has it can ask it from any
//     goroutine.
//   - What no rule allows is denied, and a rule that denies beats every rule
//     that allows, in whatever order they stand.
//   - A condition on something that the request does not tell is neither true
//     nor false. If the answer hangs on it, the answer is an error.
//   - Every mistake is found when a set is made: an empty list, a word that is
//     not known and an expression that does not compile are errors, never a
//     condition that is left out.
//   - An answer costs no allocation, unless an expression is evaluated or the
//     answer is an error.
package rules
