// Judge a history of `rackctl chaos --history` or of the simulator with Porcupine: go run . FILE
// Exit status 0 when every block is linearizable as a register, 1 when not.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"

	"github.com/anishathalye/porcupine"
)

type line struct {
	Client  string `json:"client"`
	Block   int    `json:"block"`
	Kind    string `json:"kind"`
	Value   *int   `json:"value"`
	Call    int64  `json:"call_ns"`
	Return  *int64 `json:"return_ns"`
	Outcome string `json:"outcome"`
}

type input struct {
	block int
	write bool
	value int
}

// A block is a register that holds 0 at first; what a write returns does not matter.
var register = porcupine.Model{
	Init: func() interface{} { return 0 },
	Step: func(state, in, out interface{}) (bool, interface{}) {
		if in.(input).write {
			return true, in.(input).value
		}
		return out.(int) == state.(int), state
	},
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		blocks := map[int][]porcupine.Operation{}
		for _, operation := range history {
			block := operation.Input.(input).block
			blocks[block] = append(blocks[block], operation)
		}
		parts := [][]porcupine.Operation{}
		for _, part := range blocks {
			parts = append(parts, part)
		}
		return parts
	},
}

func read(path string) ([]porcupine.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	clients := map[string]int{}
	history := []porcupine.Operation{}
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		var found line
		if err := json.Unmarshal(scanner.Bytes(), &found); err != nil {
			return nil, err
		}
		if found.Outcome == "fail" {
			continue // a read that returned nothing
		}
		if _, known := clients[found.Client]; !known {
			clients[found.Client] = len(clients)
		}
		end := int64(math.MaxInt64) // a write of unknown outcome may take effect at any time
		if found.Return != nil {
			end = *found.Return
		}
		history = append(history, porcupine.Operation{
			ClientId: clients[found.Client],
			Input:    input{found.Block, found.Kind == "write", *found.Value},
			Call:     found.Call,
			Output:   *found.Value,
			Return:   end,
		})
	}
	return history, nil
}

func main() {
	history, err := read(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if !porcupine.CheckOperations(register, history) {
		fmt.Printf("%d operations are not linearizable\n", len(history))
		os.Exit(1)
	}
	fmt.Printf("%d operations are linearizable\n", len(history))
}
